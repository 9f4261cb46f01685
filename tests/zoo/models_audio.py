"""Sound: waveforms of any length, spectra, the encoders of `transformers`."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from tests.zoo.entry import Entry, Exported, floats, gives

_WAVE = floats("waveform", "batch", 800, low=-1, high=1)
_WAVE_ANY = floats("waveform", "batch", "samples", low=-1, high=1)


class KeywordSpotter(nn.Module):
    """Strided convolutions over a waveform of any length, with pooling."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv1d(1, 16, 20, stride=8), nn.BatchNorm1d(16), nn.ReLU(), nn.Conv1d(16, 16, 5, stride=2), nn.ELU()
        )
        self.head = nn.Linear(16, 12)

    def forward(self, waveform: Tensor) -> Tensor:
        logits: Tensor = self.head(self.body(waveform[:, None, :]).mean(dim=2))
        return logits


class Spectrogram(nn.Module):
    """A short-time Fourier transform, its logarithm, and convolutions."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("window", torch.hann_window(64))
        self.body = nn.Conv2d(1, 8, 3, stride=2)
        self.head = nn.Linear(8, 4)

    def forward(self, waveform: Tensor) -> Tensor:
        window = self.window
        assert isinstance(window, Tensor)
        spectrum = torch.stft(waveform, 64, hop_length=32, window=window, center=False, return_complex=True)
        power = torch.view_as_real(spectrum).square().sum(-1)
        hidden = torch.relu(self.body(torch.log1p(power)[:, None]))
        events: Tensor = self.head(hidden.mean(dim=(2, 3)))
        return events


class Cepstrum(nn.Module):
    """Overlapping frames, the real FFT of each, a learned filter bank, and the pitch as an integer."""

    def __init__(self) -> None:
        super().__init__()
        self.bank = nn.Linear(33, 12)

    def forward(self, waveform: Tensor) -> tuple[Tensor, Tensor]:
        magnitude = torch.view_as_real(torch.fft.rfft(waveform.unfold(1, 64, 32))).norm(dim=-1)
        return self.bank(magnitude), magnitude.argmax(dim=-1)


class Separator(nn.Module):
    """Encoder, dilated residual convolutions with a gate, decoder: two waveforms of one."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Conv1d(1, 16, 16, stride=8)
        self.layers = nn.ModuleList(nn.Conv1d(16, 32, 3, padding=2**i, dilation=2**i) for i in range(3))
        self.decoder = nn.ConvTranspose1d(16, 2, 16, stride=8)

    def forward(self, waveform: Tensor) -> Tensor:
        hidden = self.encoder(waveform[:, None])
        for layer in self.layers:
            hidden = hidden + functional.glu(layer(hidden), dim=1)
        voices: Tensor = self.decoder(hidden)
        return voices


def wav2vec2() -> nn.Module:
    from transformers import Wav2Vec2Config, Wav2Vec2ForCTC

    config: Any = Wav2Vec2Config(
        hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=64, vocab_size=16,
        conv_dim=(16, 16), conv_kernel=(10, 4), conv_stride=(5, 2), num_conv_pos_embeddings=16,
        num_conv_pos_embedding_groups=4, apply_spec_augment=False,
    )  # fmt: skip
    return Wav2Vec2ForCTC(config)


class WhisperEncoder(nn.Module):
    """Whisper's encoder, which has a fixed length."""

    def __init__(self) -> None:
        super().__init__()
        from transformers import WhisperConfig, WhisperModel

        config = WhisperConfig(
            d_model=32, encoder_layers=2, decoder_layers=1, encoder_attention_heads=4, decoder_attention_heads=4,
            encoder_ffn_dim=64, decoder_ffn_dim=64, num_mel_bins=16, max_source_positions=20, vocab_size=64,
            pad_token_id=0, bos_token_id=1, eos_token_id=2, decoder_start_token_id=1,
        )  # fmt: skip
        self.encoder = WhisperModel(config).encoder

    def forward(self, features: Tensor) -> Tensor:
        states: Tensor = self.encoder(features).last_hidden_state
        return states


ENTRIES = (
    Entry(name="keyword-spotter", field="audio", about="1d convolutions; the length varies", make=KeywordSpotter,
          inputs=(_WAVE_ANY,), outputs=(gives("logits", "batch", 12),), sizes={"samples": 400}, store="pt2",
          expected=Exported("dynamo")),
    Entry(name="spectrogram", field="audio", about="STFT", make=Spectrogram, inputs=(_WAVE,),
          outputs=(gives("events", "batch", 4),), store="pickle", expected=Exported("dynamo")),
    Entry(name="cepstrum", field="audio", about="frames, FFT, integer output", make=Cepstrum, inputs=(_WAVE,),
          outputs=(gives("bands", "batch", 24, 12), gives("pitch", "batch", 24, dtype="int64")), store="pickle",
          expected=Exported("dynamo")),
    Entry(name="separator", field="audio", about="dilated and transposed 1d convolutions, gated", make=Separator,
          inputs=(_WAVE,), store="state dict", described=True, expected=Exported("dynamo")),
    Entry(name="wav2vec2", field="audio", about="transformers: Wav2Vec 2 for CTC", make=wav2vec2,
          inputs=(floats("input_values", "batch", 400, low=-1, high=1),), outputs=(gives("logits", "batch", 38, 16),),
          store="pt2", expected=Exported("dynamo")),
    Entry(name="whisper-encoder", field="audio", about="transformers: Whisper's encoder", make=WhisperEncoder,
          inputs=(floats("features", "batch", 16, 40),), outputs=(gives("states", "batch", 20, 32),), store="pt2",
          expected=Exported("dynamo")),
)  # fmt: skip
