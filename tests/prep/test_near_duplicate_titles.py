import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from prep import near_duplicate_titles
from prep.near_duplicate_titles import BANDS, MAX_COMPARED, MAX_WORDS, SIGNATURES, TitleIndex, signatures

Item = str | tuple[str, str]  # a title, or a title and its store


def signed(items: Sequence[Item]) -> pa.Table:
    pairs = [item if isinstance(item, tuple) else (item, "") for item in items]
    return signatures([title for title, _ in pairs], [store for _, store in pairs])


def partners(measured: Sequence[Item], training: Sequence[Item]) -> list[int]:
    return TitleIndex([signed(measured)]).search(signed(training)).tolist()


def near(one: Item, other: Item) -> bool:
    both = {tuple(partners([one], [other])), tuple(partners([other], [one]))}
    assert len(both) == 1, "a near duplicate in one direction only"
    return both == {(0,)}


CASE = "Acme Slim Fit Silicone Back Cover Case for Samsung Galaxy"


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("Acme Braided Lightning Charging Cable, 2 m", "Acme Braided Lightning Charging Cable, 3 m"),
        ("Acme Braided Lightning Charging Cable - 3 feet", "Acme Braided Lightning Charging Cable 180cm"),
        ("Acme Hard Drive Case for Travel (Black)", "Acme Hard Drive Case for Travel (Azure Blue)"),
        ("Acme Hard Drive Case for Travel, Matte Black", "ACME hard-drive case for travel: royal blue"),
        ("Acme Festplatte Tasche mit Griff, schwarz", "Acme Festplatte Tasche mit Griff, grün"),
        ("Acme Organic Hair Vitamins (Pack of 2)", "Acme Organic Hair Vitamins, 3 Pack, 60 count"),
        ("Acme Organic Protein Powder (Vanilla Cold Brew, 25 Serve)", "Acme Organic Protein Powder (Chocolate) (2 lb)"),
        ("Acme DCP-L2520D Laser Printer with Duplex", "Acme DCP-B7535DW Laser Printer with Duplex"),
        ("Acme iPhone 11 case, shockproof and transparent", "Acme iPhone 12 case, shockproof and transparent"),
        ("Acme iPhone 11 case, shockproof, with stand", "Acme iPhone XR case, shockproof, with stand"),
        ("Acme wireless mouse with silent click, red", "Acme mouse with silent click - wireless (red)"),
        ("Acme solo oven 20 L (20PM-MEC2)", "Acme solo oven 25 L (25PM-MEC1)"),
        ("Acme solo oven (20PM-MEC2), black", "Acme solo oven"),  # only one of them says enough
        (f"{CASE} M33 with camera protection, soft", f"{CASE} M33 RGB with camera protection, soft"),  # one word more
        (f"{CASE} M33 5G | Camera Protec...", f"{CASE} M33 | Camera Protection Bump | Clear Hard Back"),
        (f"{CASE} M33 5G | Camera …", f"{CASE} A33 5G | Camera Protection Bump | Clear Har..."),
        (("Slim Hard Drive Case for Travel, red", "Acme"), ("Slim Hard Drive Case for Travel, blue", "ACME")),
        (("Acme Slim Hard Drive Case, red", "Acme Ltd."), "Acme Slim Hard Drive Case, blue"),
    ],
)
def test_another_colour_size_or_model_is_a_near_duplicate(one: Item, other: Item) -> None:
    assert near(one, other)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("Rocky II (1979)", "Rocky III (1982)"),
        ("Rocky 2", "Rocky 3"),
        ("Toy Story 2 (DVD)", "Toy Story 3 (DVD)"),
        ("Journey to the Center of the Earth (1959)", "Journey to the Center of the Earth (2008)"),
        ("Harry Potter and the Deathly Hallows: Part 1", "Harry Potter and the Deathly Hallows: Part 2"),
        ("The Walking Dead: The Complete Season 2 (DVD box)", "The Walking Dead: The Complete Season 3 (DVD box)"),
        ("Acme Hard Drive Case for Travel (Black)", "Zenith Hard Drive Case for Travel (Black)"),
        (("Slim Hard Drive Case for Travel, red", "Acme"), ("Slim Hard Drive Case for Travel, red", "Zenith")),
        (("Slim Hard Drive Case for Travel, red", "Acme"), "Slim Hard Drive Case for Travel, red"),
        ("Acme Wireless Silent Mouse for Laptops, 2.4 GHz", "Acme Wireless Silent Keyboard for Laptops, 2.4 GHz"),
        ("Acme Vitamin C tablets, vegan, sugar free, 60 count", "Acme Vitamin D tablets, vegan, sugar free, 60 count"),
        (f"{CASE} M33 5G", "Acme Slim Fit Silicone Back Cover Case for iPhone 14"),
        (f"{CASE} M33 5G", f"{CASE} M33 5G with belt clip, wallet and stand"),  # not cut, so these words are missing
        (f"{CASE} M33, leather fini...", f"{CASE} M33, rubber finish"),
        ("Acme travel wallet case 64GB 5m red...", "Acme travel wallet case leather 64GB 5m"),  # cut too early
        (
            f"{CASE} M33, leather wallet finish wi...",
            f"{CASE} A33, rubber bumper edges an...",
        ),  # both go on differently
        (("Slim Hard Drive Case for Travel, red", "Acme Bags"), ("Slim Hard Drive Case for Travel, red", "Acme Tools")),
        ("12 34 56 black (1999)", "12 34 57 red (1999)"),
        ("", ""),
    ],
)
def test_other_products_are_no_near_duplicates(one: Item, other: Item) -> None:
    assert not near(one, other)


def test_the_most_similar_title_is_found_and_the_first_of_several() -> None:
    text = "Acme Slim Fit Silicone Back Cover Case for Samsung Galaxy with camera protection, soft"
    measured = ["Zenith laptop table for bed and sofa, 60 cm", f"{text} RGB, M31", f"{text}, M32", f"{text}, M33"]
    assert partners(measured, [f"{text}, M34", f"{text} RGB, M35", "Acme laptop table for bed and sofa"]) == [2, 1, -1]


def test_signatures_are_aligned_with_the_titles_and_can_be_sliced_and_stored(tmp_path: Path) -> None:
    titles = ["Rocky", *(f"Acme {noun} for home and office, 2 m" for noun in ("cable", "lamp", "table")), ""]
    table = signed(titles)
    assert table.schema == SIGNATURES
    assert table.num_rows == len(titles)
    with pa.OSFile(str(tmp_path / "s.arrow"), "wb") as file, pa.ipc.new_file(file, SIGNATURES) as writer:
        writer.write_table(table)
    stored = pa.ipc.open_file(tmp_path / "s.arrow").read_all()
    assert TitleIndex([stored]).search(table.slice(2)).tolist() == [2, 3, -1]
    assert TitleIndex([stored.slice(2)]).search(stored).tolist() == [-1, -1, 0, 1, -1]
    assert TitleIndex([table.slice(0, 2), signed([]), table.slice(2)]).search(stored).tolist() == [-1, 1, 2, 3, -1]


def test_only_the_first_words_of_a_long_title_are_compared() -> None:
    words = [f"{number:07b}".replace("0", "to").replace("1", "ga") for number in range(100)]
    long, longer = " ".join(words[:MAX_WORDS]), " ".join(words[: MAX_WORDS + 1])
    assert near(f"{longer} one", f"{longer} other")
    assert near(longer, long)
    assert len(signed([longer])["words"][0]) == MAX_WORDS


def test_no_titles() -> None:
    assert partners([], ["Acme laptop table for bed and sofa"]) == [-1]
    assert partners(["Acme laptop table for bed and sofa"], []) == []
    assert TitleIndex([]).search(signed(["", "Rocky"])).tolist() == [-1, -1]


def test_the_quick_check_changes_no_result(monkeypatch: pytest.MonkeyPatch) -> None:
    ends = ("leather wallet finish wi...", "rubber bumper edges an...", "leather wallet finish", "rubber bumper", "RGB")
    items = [f"{CASE} M33, {end}" for end in ends]
    found = [near(one, other) for one in items for other in items]
    monkeypatch.setattr(near_duplicate_titles, "_differ", lambda a, one, b, other: np.zeros(len(one), bool))
    assert [near(one, other) for one in items for other in items] == found


WORDS = st.sampled_from(("cable", "lamp", "table", "for", "and", "office", "wall", "red", "3", "4k", "(blue)", "part"))
TITLES = st.lists(st.lists(WORDS, min_size=4, max_size=12).map(lambda words: " ".join(["Acme", *words])), max_size=40)


@settings(deadline=None)
@given(TITLES, TITLES, st.randoms())
def test_whether_a_title_has_a_partner_does_not_depend_on_the_order_or_the_parts(
    measured: list[str], training: list[str], random
) -> None:
    expected = [number >= 0 for number in partners(measured, training)]
    shuffled = random.sample(measured, len(measured))
    cut = random.randint(0, len(measured))
    index = TitleIndex([signed(shuffled[:cut]), signed(shuffled[cut:])])
    found = np.concatenate([index.search(signed([title])) for title in training]) if training else np.empty(0)
    assert (found >= 0).tolist() == expected
    for title, number in zip(training, found.astype(int), strict=True):
        assert number < 0 or near(shuffled[number], title)


@given(st.lists(st.text(max_size=60), max_size=20))
def test_any_text_is_accepted_and_two_searches_agree(titles: list[str]) -> None:
    index, table = TitleIndex([signed(titles)]), signed(titles)
    found = index.search(table)
    assert found.tolist() == index.search(table).tolist()
    comparable = [bool(words) for words in table["words"].to_pylist()]
    assert (found >= 0).tolist() == (np.array(comparable, bool) & table["telling"].to_numpy()).tolist()  # to itself


def test_another_process_gives_the_same_signatures() -> None:
    titles = [f"{CASE} M{number}, colour {number % 7}" for number in range(50)]
    code = (
        "import json, sys; from prep.near_duplicate_titles import signatures; "
        "t = json.load(sys.stdin); print(json.dumps(signatures(t, [''] * len(t)).to_pylist()))"
    )
    run = [sys.executable, "-c", code]
    done = subprocess.run(
        run, input=json.dumps(titles), capture_output=True, text=True, check=True, cwd=Path(__file__).parents[2]
    )
    assert json.loads(done.stdout) == signed(titles).to_pylist()


@pytest.fixture
def compared(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Return the numbers of pairs of titles that were compared, in any way."""
    counts, differ = [], near_duplicate_titles._differ

    def counted(a, one, b, other):
        counts.append(len(one) / 2)  # it is called for each direction
        return differ(a, one, b, other)

    monkeypatch.setattr(near_duplicate_titles, "_differ", counted)
    return counts


def test_equal_templates_are_compared_once_each(compared: list[int]) -> None:
    count = 50_000
    measured = [f"{CASE} M{number}, with stand (Red)" for number in range(count)]
    training = [f"{CASE} A{number}, with stand (Blue)" for number in range(count)]
    assert partners(measured, training) == [0] * count
    assert sum(compared) == count


def test_similar_titles_of_one_template_are_compared_with_a_limited_number(compared: list[int]) -> None:
    count = 3_000
    letters = str.maketrans("0123456789", "abcdefghij")
    name = [f"x{number:05d}y".translate(letters) for number in range(2 * count)]
    measured = [f"{CASE} with stand | {name[number]}" for number in range(count)]
    found = partners(measured, [f"{CASE} with stand | {name[count + number]}" for number in range(count)])
    assert found == [-1] * count  # each has a word that the other lacks
    assert 0 < sum(compared) <= count * (BANDS + 1) * MAX_COMPARED
    assert partners(measured, measured) == list(range(count))  # equal titles are found in the largest bucket
