"""From published files to packed rows: sources, formats, conversations, chat, samples, bins, packs."""
