"""Importer of conversations about images in LLaVA's JSON format."""
