"""Decoders: patch tokens to class scores per patch."""
