"""Details that tell how popular an item became are left out of the text; others stay."""

import json
from pathlib import Path

import pytest

from prep.core.leaks import is_leak
from prep.core.text import clean, clean_details

LEAKS = """Best Sellers Rank|BEST-SELLERS_RANK:|Amazon Bestsellers Rank|Best Seller Rank|salesRank|Sales Rank
Customer Reviews|Average Customer Review|customer_reviews|average_rating|rating_number|Review Count
Number of Ratings|Global Ratings|Reviews|Bought in past month|Units sold|Amazon Bestseller-Rang
Durchschnittliche Kundenbewertung|Kundenrezensionen|Classement des meilleures ventes d'Amazon
Moyenne des commentaires client|\u00c9valuations des clients
Clasificaci\u00f3n en los m\u00e1s vendidos de Amazon|Opini\u00f3n media de los clientes
Valoraciones de los clientes|Posizione nella classifica Bestseller di Amazon|Recensioni dei clienti
Plaats in bestsellerlijst|Klantenrecensies|Ranking dos mais vendidos|Avalia\u00e7\u00f5es dos clientes
M\u00fc\u015fteri Yorumlar\u0131|Kundrecensioner|Opinie klient\u00f3w
Amazon \u58f2\u308c\u7b4b\u30e9\u30f3\u30ad\u30f3\u30b0
\u30ab\u30b9\u30bf\u30de\u30fc\u30ec\u30d3\u30e5\u30fc"""
KEPT = """Rated|MPAA Rating|Age Rating|Energy Star Rating|Ply Rating|MERV Rating|Sterility Rating|IP Rating
Material|Minimum Efficiency Reporting Values (MERV)|Number of Items|Customer Package Type
Date First Available|List Price|Sold by"""


@pytest.mark.parametrize("name", LEAKS.replace("\n", "|").split("|"))
def test_a_detail_that_tells_the_popularity_is_dropped(name: str) -> None:
    kept = {"Brand": "X", "Size": {"Length": 2}}
    leak = {name: {"stars": 4.4, "count": 32}}
    for changed in ({**leak, **kept}, {**kept, **leak}, {"Brand": "X", "Size": {**leak, "Length": 2}}):
        encoded = (json.dumps(changed), str(changed))
        for details in encoded:
            assert clean_details(details) == "Brand: X; Size: Length 2"
    assert clean_details(f"Brand: X; {name}: #12 in Toys; #3 in Games; Size: 2") == "Brand: X; Size: 2"


@pytest.mark.parametrize("name", KEPT.replace("\n", "|").split("|"))
def test_a_rating_of_something_else_is_kept(name: str) -> None:
    assert clean_details(json.dumps({name: "5"})) == f"{name}: 5"


@pytest.mark.parametrize(
    "value",
    ["4.4 out of 5 stars", "4,5 von 5 Sternen", "4,5 sur 5 \u00e9toiles", "32 ratings", "#5 (See Top 100 in Toys)"],
)
def test_a_value_that_tells_the_popularity_is_dropped_whatever_its_name(value: str) -> None:
    assert clean_details(json.dumps({"About": value, "Brand": "X"})) == "Brand: X"


def test_of_the_real_rows_only_popularity_is_dropped(corpus: Path) -> None:
    lines = (corpus / "amazon/raw/meta_categories/meta_Health_and_Personal_Care.jsonl").read_bytes().splitlines()
    details = [json.loads(line)["details"] for line in lines]
    dropped = [key for one in details for key, value in one.items() if is_leak(clean(key), clean(str(value)))]
    assert dropped == ["Best Sellers Rank"]
