"""Pictures of 2-D shapes with questions: see `shapes_vqa_dataset_builder`."""
