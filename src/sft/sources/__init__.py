"""Downloads: addresses in params.yaml to verified files, and the base model."""
