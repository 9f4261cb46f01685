"""LoadedModel models: how they are stored, loaded and called."""
