"""nano3-sft: chat data to a fine-tuned, evaluated and registered model, in six stages."""
