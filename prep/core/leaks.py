"""Recognize the details of an item that tell how popular it became; training and prediction share it.

Input: the name and the value of a detail, cleaned.
Output: whether it is popularity after launch: a sales rank, a rating, a number of ratings or reviews.
Guarantees: pure functions; time does not grow with the length of a name or value.

Such details equal the label or follow from it, and a new product has none. Names are recognized in the languages of
Amazon's sites, with or without accents, capitals and punctuation. A rating of something else (energy, age, film, noise)
is kept.
"""

import re
import unicodedata
from functools import lru_cache

_NAME, _VALUE = 100, 300  # characters that are looked at
_WHO = r"(?:(?:customer|user|buyer|reader|global|verified|product|amazon)s? )"
_NAMES = re.compile(
    r"""
    # sales
    (?:best\ ?sell(?:er|ing)s?|sales?)\ rank | salesrank | best\ ?sellers?\b | bestseller | meilleures\ ventes
    | mas\ vendidos | mais\ vendidos | bastsaljare | best\ verkocht | najlepiej\ sprzedaj | cok\ satan | 売れ筋 | 热销
    | 熱銷 | 销售排行 | الاكثر\ مبيعا | الافضل\ مبيعا | (?:units|copies|number)\ sold
    | bought\ in\ (?:the\ )?(?:past|last)\ month | popularity | wish\ ?list\ count | amazon\ rank
    # ratings and reviews
    | (?:customer|user|buyer|reader|amazon)s?(?:\ s)?\ (?:star\ )?(?:reviews?|ratings?|feedback)\b
    | \b(?:average|mean|overall|total|number\ of|no\ of|num|count\ of)\ {_WHO}*(?:reviews?|ratings?)\b
    | \b(?:reviews?|ratings?)\ (?:count|number|average|total) | ^{_WHO}*(?:reviews?|ratings)$ | ^top\ reviews
    | helpful\ votes | answered\ questions | kunden\ ?(?:rezension|bewertung|meinung)
    | (?:commentaires?|evaluations?|avis)(?:\ des?|\ moyens?)*\ clients?
    | moyenne\ des\ (?:commentaires|evaluations|avis)
    | (?:opinion|valoracion|calificacion|resena)\w*(?:\ media)?\ de(?:\ los)?\ clientes
    | (?:opinion|valoracion|calificacion|avaliacao)\ media | recension\w*(?:\ medi\w+)?(?:\ dei|\ di)?\ client
    | media\ recensioni | valutazione\ media | klant(?:en)?\ ?(?:recensie|beoordeling)
    | gemiddelde\ (?:klant)?beoordeling | (?:avaliac|comentario|opinio)\w+(?:\ media)?\ d\w+\ clientes
    | musteri\ (?:yorum|degerlendirme|puan) | kund(?:recension|betyg|omdome) | (?:recenzj|opini|ocen)\w+\ klientow
    | レヒュー | レビュー | おすすめ度 | 评论 | 評論 | 评分 | 評分 | 评价 | 評價 | مراجعات
    """.replace("{_WHO}", _WHO.replace(" ", r"\ ")),
    re.VERBOSE,
)
_STARS = r"(?:stars?|sternen?|etoiles?|estrellas?|estrelas?|stelle|sterren|stjarnor|gwiazdek|yildiz)"
_VALUES = re.compile(
    rf"\b[0-5](?:[.,]\d+)? ?(?:out of|von|sur|de|di|su|van(?: de)?|uit|av|na|/) ?5(?:[.,]0)? {_STARS}\b"
    r"|5つ星のうち|^\d[\d.,]* (?:global |customer )?(?:ratings?|reviews?)$"
    r"|\b(?:see|siehe|ver|voir|visualizza) (?:el |i |les |o )?(?:top 100|100 premiers)"
)
_NOT_WORD = re.compile(r"[\W_]+")


def is_leak(name: str, value: str = "") -> bool:
    """Return whether a detail of an item tells how popular it became.

    Args:
        name: of the detail, for example "Best Sellers Rank".
        value: of the detail as a text.
    """
    return _is_leaking_name(name[:_NAME]) or bool(value and _VALUES.search(_plain(value[:_VALUE])))


@lru_cache(10_000)  # few names make up most of the details
def _is_leaking_name(name: str) -> bool:
    return bool(_NAMES.search(_NOT_WORD.sub(" ", _plain(name)).strip()))


def _plain(text: str) -> str:
    """Return a text without accents and capitals."""
    if text.isascii():
        return text.lower()
    decomposed = unicodedata.normalize("NFKD", text.casefold())
    return "".join(character for character in decomposed if not unicodedata.combining(character)).replace("\u0131", "i")
