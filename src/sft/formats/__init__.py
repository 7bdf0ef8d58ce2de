"""Input formats: raw files to conversations in OpenAI form."""
