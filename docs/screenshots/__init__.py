"""Pictures of README and docs: releases of small models in a local stack, photographed in Chromium."""
