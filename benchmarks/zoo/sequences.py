"""Networks in PyTorch for audio, series, text and tables."""

import math
from itertools import pairwise
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F


class Tcn(nn.Module):
    """Causal dilated convolutions with residual sums over [n, channels, steps]."""

    def __init__(self, inputs: int = 6, width: int = 24, outputs: int = 4) -> None:
        super().__init__()
        self.start = nn.Conv1d(inputs, width, 1)
        self.convs = nn.ModuleList(nn.Conv1d(width, width, 3, dilation=2**level) for level in range(4))
        self.norms = nn.ModuleList(nn.BatchNorm1d(width) for _ in range(4))
        self.head = nn.Conv1d(width, outputs, 1)

    def forward(self, series: Any) -> Any:
        x = self.start(series)
        for level, (conv, norm) in enumerate(zip(self.convs, self.norms, strict=True)):
            x = x + F.relu(norm(conv(F.pad(x, (2 * 2**level, 0)))))
        return self.head(x)


class Audio1d(nn.Module):
    """A classifier of raw audio [n, 1, samples] (the architecture M5 of Dai et al. 2017, narrow)."""

    def __init__(self, classes: int = 8) -> None:
        super().__init__()
        widths = (1, 16, 24, 32)
        layers: list[nn.Module] = []
        for inputs, outputs in pairwise(widths):
            first = inputs == 1
            layers += [nn.Conv1d(inputs, outputs, 80 if first else 3, 4 if first else 1, bias=False)]
            layers += [nn.BatchNorm1d(outputs), nn.ReLU(), nn.MaxPool1d(4)]
        self.body = nn.Sequential(*layers)
        self.head = nn.Linear(widths[-1], classes)

    def forward(self, audio: Any) -> Any:
        return F.log_softmax(self.head(self.body(audio).mean(-1)), -1)


class Crnn(nn.Module):
    """Convolutions, a bidirectional GRU over the columns, scores per column."""

    def __init__(self, classes: int = 11) -> None:
        super().__init__()
        self.conv1, self.norm1 = nn.Conv2d(1, 16, 3, padding=1), nn.BatchNorm2d(16)
        self.conv2, self.norm2 = nn.Conv2d(16, 24, 3, padding=1), nn.BatchNorm2d(24)
        self.rnn = nn.GRU(24 * 4, 24, bidirectional=True, batch_first=True)
        self.head = nn.Linear(48, classes)

    def forward(self, image: Any) -> Any:
        x = F.max_pool2d(F.relu(self.norm1(self.conv1(image))), 2)
        x = F.max_pool2d(F.relu(self.norm2(self.conv2(x))), 2)
        found, _ = self.rnn(x.permute(0, 3, 1, 2).flatten(2))
        return self.head(found)


class Tabular(nn.Module):
    """Numbers and two categories."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Embedding(20, 6), nn.Embedding(50, 8)
        self.norm = nn.BatchNorm1d(10)
        self.hidden, self.norm2 = nn.Linear(24, 64), nn.BatchNorm1d(64)
        self.deep, self.head = nn.Linear(64, 32), nn.Linear(32, 3)

    def forward(self, numbers: Any, categories: Any) -> Any:
        known = [self.first(categories[:, 0]), self.second(categories[:, 1]), self.norm(numbers)]
        hidden = F.relu(self.norm2(self.hidden(torch.cat(known, 1))))
        return self.head(F.elu(self.deep(hidden)))


class Text(nn.Module):
    """The mean of the embeddings of the tokens that are not padding, and a perceptron."""

    def __init__(self, words: int = 500) -> None:
        super().__init__()
        self.words = nn.Embedding(words, 32, padding_idx=0)
        self.hidden, self.head = nn.Linear(32, 32), nn.Linear(32, 4)

    def forward(self, tokens: Any) -> Any:
        known = (tokens != 0).to(torch.float32).unsqueeze(-1)
        mean = (self.words(tokens) * known).sum(1) / known.sum(1).clamp(min=1)
        return self.head(F.relu(self.hidden(mean)))


class Recurrent(nn.Module):
    """The last output of a recurrent network, classified."""

    def __init__(self, kind: str, layers: int = 1, bidirectional: bool = False) -> None:
        super().__init__()
        made = getattr(nn, kind)
        self.rnn = made(8, 32, layers, batch_first=True, bidirectional=bidirectional)
        self.head = nn.Linear(64 if bidirectional else 32, 5)

    def forward(self, series: Any) -> Any:
        found, _ = self.rnn(series)
        return self.head(found[:, -1])


class StreamingGru(nn.Module):
    """One frame and the state in, scores and the new state out."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(16, 24)
        self.rnn = nn.GRU(24, 32, batch_first=True)
        self.head = nn.Linear(32, 3)

    def forward(self, frame: Any, state: Any) -> Any:
        found, state = self.rnn(F.relu(self.inner(frame)), state)
        return torch.sigmoid(self.head(found)), state


class SelfAttention(nn.Module):
    def __init__(self, width: int, heads: int, causal: bool = False, rotary: bool = False) -> None:
        super().__init__()
        self.heads, self.causal, self.rotary = heads, causal, rotary
        self.joint, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, x: Any, mask: Any = None) -> Any:
        batch, steps, width = x.shape
        joint = self.joint(x).reshape(batch, steps, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        query, key, value = joint.unbind(0)
        if self.rotary:
            query, key = rotated(query), rotated(key)
        found = F.scaled_dot_product_attention(query, key, value, attn_mask=mask, is_causal=self.causal)
        return self.out(found.transpose(1, 2).reshape(batch, steps, width))


def rotated(x: Any) -> Any:
    """Rotary position embedding (Su et al. 2021)."""
    half = x.shape[-1] // 2
    angles = torch.arange(x.shape[-2])[:, None] * 100.0 ** (-torch.arange(half) / half)
    sine, cosine = angles.sin(), angles.cos()
    first, second = x[..., :half], x[..., half:]
    return torch.cat([first * cosine - second * sine, first * sine + second * cosine], -1)


class Bert(nn.Module):
    """An encoder of ids [n, steps] and their mask: scores, and the pooled vector."""

    def __init__(self, words: int = 300, width: int = 48, steps: int = 16, layers: int = 2) -> None:
        super().__init__()
        self.words, self.places = nn.Embedding(words, width), nn.Embedding(steps, width)
        self.start = nn.LayerNorm(width)
        self.attend = nn.ModuleList(SelfAttention(width, 4) for _ in range(layers))
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(2 * layers))
        self.wide = nn.ModuleList(nn.Linear(width, 4 * width) for _ in range(layers))
        self.narrow = nn.ModuleList(nn.Linear(4 * width, width) for _ in range(layers))
        self.pool, self.head = nn.Linear(width, width), nn.Linear(width, 4)

    def forward(self, ids: Any, mask: Any) -> Any:
        added = (1.0 - mask[:, None, None, :].to(torch.float32)) * torch.finfo(torch.float32).min
        x = self.start(self.words(ids) + self.places(torch.arange(ids.shape[1])))
        for level, attend in enumerate(self.attend):
            x = self.norms[2 * level](x + attend(x, added))
            x = self.norms[2 * level + 1](x + self.narrow[level](F.gelu(self.wide[level](x))))
        pooled = torch.tanh(self.pool(x[:, 0]))
        return self.head(pooled), pooled


class Decoder(nn.Module):
    """A small causal language model: RMS norm, rotary positions, gated linear units."""

    def __init__(self, words: int = 200, width: int = 48, layers: int = 2) -> None:
        super().__init__()
        self.words = nn.Embedding(words, width)
        self.attend = nn.ModuleList(SelfAttention(width, 4, causal=True, rotary=True) for _ in range(layers))
        self.norms = nn.ModuleList(nn.RMSNorm(width) for _ in range(2 * layers + 1))
        self.gates = nn.ModuleList(nn.Linear(width, 256) for _ in range(layers))
        self.narrow = nn.ModuleList(nn.Linear(128, width) for _ in range(layers))
        self.head = nn.Linear(width, words, bias=False)

    def forward(self, ids: Any) -> Any:
        x = self.words(ids)
        for level, attend in enumerate(self.attend):
            x = x + attend(self.norms[2 * level](x))
            gate, value = self.gates[level](self.norms[2 * level + 1](x)).chunk(2, -1)
            x = x + self.narrow[level](F.silu(gate) * value)
        return self.head(self.norms[-1](x))


class MaskedAttention(nn.Module):
    """PyTorch's own attention and encoder layer, with a mask of the padding."""

    def __init__(self, width: int = 32) -> None:
        super().__init__()
        self.start = nn.Linear(8, width)
        self.attend = nn.MultiheadAttention(width, 4, batch_first=True)
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, 6)

    def forward(self, series: Any, valid: Any) -> Any:
        x = self.start(series)
        found, _ = self.attend(x, x, x, key_padding_mask=valid == 0, need_weights=False)
        return self.head(self.norm(x + found)[:, 0])


class Conformer(nn.Module):
    """One Conformer block: half-step feed-forward, attention, gated convolution, layer norms."""

    def __init__(self, width: int = 32) -> None:
        super().__init__()
        self.start = nn.Linear(20, width)
        self.feed = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, 64), nn.SiLU(), nn.Linear(64, width))
        self.before, self.attend = nn.LayerNorm(width), SelfAttention(width, 4)
        self.wide = nn.Conv1d(width, 2 * width, 1)
        self.depthwise = nn.Conv1d(width, width, 7, padding=3, groups=width)
        self.norm, self.narrow = nn.BatchNorm1d(width), nn.Conv1d(width, width, 1)
        self.last, self.head = nn.LayerNorm(width), nn.Linear(width, 10)

    def forward(self, frames: Any) -> Any:
        x = self.start(frames) * math.sqrt(2)
        x = x + 0.5 * self.feed(x)
        x = x + self.attend(self.before(x))
        gated = F.glu(self.wide(x.transpose(1, 2)), 1)
        x = x + self.narrow(F.silu(self.norm(self.depthwise(gated)))).transpose(1, 2)
        return self.head(self.last(x))
