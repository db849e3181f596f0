"""Pictures of the tabletop without its robot, with questions."""
