"""From a model back to its data, whether it is whole, and how two models differ."""
