"""The words of a text from its word pieces, as hashes, computed with the tensors of the network.

Input: token ids of a tokenizer whose pieces continue a word if they start with ##, as BERT's do. Output: a hash of each
word. Guarantees: words of the same pieces have the same hash, those of different pieces almost never do; punctuation,
single characters and special tokens are no words; padding changes nothing.
"""

import torch
from tokenizers import Tokenizer
from torch import Tensor, nn

from prep.core.fields import LABELS

_CONTINUES = "##"
_MULTIPLIER = 0x5851F42D4C957F2D  # odd; its powers, modulo 2^64, tell the places of pieces in a word apart
_NEVER = 1 << 30  # no position


class Words(nn.Module):
    """Joins the pieces of words.

    Args:
        tokenizer: the tokenizer.
        rows: number of token ids.
        max_tokens: the longest text, tokens.
    """

    continues: Tensor  # int64 [rows]: 1 if the piece continues the word before it
    alone: Tensor  # int64 [rows]: 1 if the piece is a word without others
    powers: Tensor  # int64 [max_tokens]

    def __init__(self, tokenizer: Tokenizer, rows: int, max_tokens: int) -> None:
        super().__init__()
        special = tokenizer.get_added_tokens_decoder()
        continues, alone = torch.zeros(2, rows, dtype=torch.int64)
        for piece, number in tokenizer.get_vocab().items():
            continues[number] = piece.startswith(_CONTINUES)
            whole = not piece.startswith(_CONTINUES) and number not in special
            alone[number] = whole and len(piece) > 1 and any(map(str.isalnum, piece))
        self.register_buffer("continues", continues, persistent=False)
        self.register_buffer("alone", alone, persistent=False)
        powers = torch.cat([torch.ones(1, dtype=torch.int64), torch.full((max_tokens - 1,), _MULTIPLIER)])
        self.register_buffer("powers", powers.cumprod(0), persistent=False)
        self.title = tokenizer.encode(f"{LABELS['title']}:", add_special_tokens=False).ids[-2:] or [-1]

    def forward(self, tokens: Tensor, mask: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return the hash of each word, its first token, and 1 for words and 0 after them, all int64 [B, T].

        Args:
            tokens: int64 [B, T].
            mask: int64 [B, T], 1 at tokens and 0 at padding.
        """
        place = torch.arange(tokens.shape[1], device=tokens.device).expand_as(tokens)
        continues = self.continues[tokens] * mask
        longer = _following(continues)  # the next piece belongs to this word
        first = (1 - continues) * mask * torch.maximum(self.alone[tokens], longer)  # the piece begins a word
        word = (first.cumsum(1) - 1).clamp(min=0)
        empty = torch.zeros_like(tokens)
        start = empty.scatter_add(1, word, first * place)
        power = self.powers[(place - start.gather(1, word)).clamp(min=0)]
        hashes = empty.scatter_add(1, word, tokens * power * torch.maximum(first, continues))
        return hashes, start, (place < first.sum(dim=1, keepdim=True)).long()

    def first_of_title(self, tokens: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """Return the hash of the first word after the label of the title, and whether there is one, int64 [B, 1]."""
        hashes, start, is_word = self(tokens, mask)
        place = torch.arange(tokens.shape[1], device=tokens.device).expand_as(tokens)
        label = (tokens == self.title[0]) & (_following(tokens) == self.title[-1])
        colon = torch.where(label, place + 1, _NEVER).amin(dim=1, keepdim=True)
        number = torch.where((is_word > 0) & (start > colon), place, _NEVER).amin(dim=1, keepdim=True)
        return hashes.gather(1, number.clamp(max=tokens.shape[1] - 1)), (number < _NEVER).long()


def _following(values: Tensor) -> Tensor:
    """Return the value of the next token, int64 [B, T]; 0 for the last."""
    return nn.functional.pad(values[:, 1:], (0, 1))
