"""InferenceService objects onto the mesh, or onto dedicated deployments. See README.md."""
