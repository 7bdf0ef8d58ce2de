"""Looking at packs, samples and rejected rows in the terminal."""
