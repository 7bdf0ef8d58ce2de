"""MLflow: a store is reached, told what stands in outboxes, and asked. The only package that imports it."""
