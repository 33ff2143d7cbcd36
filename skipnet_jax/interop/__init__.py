"""Weights that move between this project and PyTorch or timm."""
