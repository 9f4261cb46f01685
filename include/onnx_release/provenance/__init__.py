"""Evidence about the origin of an artifact, for other tools: bill of materials, provenance statement, signature."""
