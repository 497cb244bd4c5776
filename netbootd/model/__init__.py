"""Frozen values that every layer speaks in: identities, nodes, images, resources, boot events."""
