"""GETAM, the one-stage system (arXiv 2112.02841): gradient-weighted attention maps and a DPT decoder."""
