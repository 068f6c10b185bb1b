"""Small tokenizers with random weights."""

from dataclasses import asdict

import torch

from torchmae.models.targets.tokenizer import Tokenizer, TokenizerConfig


def small_tokenizer(patch=4, channels=3, vocabulary=16, image_size=(8, 8)):
    """A tokenizer whose weights are the same each time."""
    mean, std = (0.4, 0.5, 0.6, 0.3, 0.7)[:channels], (0.2, 0.25, 0.3, 0.2, 0.1)[:channels]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return Tokenizer(TokenizerConfig(patch, vocabulary, image_size, mean, std)).eval()


def tokens_of(tokenizer):
    """The target of its tokens, as `MAE` takes it."""
    return {"name": "tokens", "model": {"tokenizer": asdict(tokenizer.config)}}
