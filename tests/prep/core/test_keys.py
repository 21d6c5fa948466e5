import re

from hypothesis import given
from hypothesis import strategies as st

from prep.core.keys import KEY, KEY_LENGTH, item_id, item_key, item_keys

TEXT = st.text(st.characters(exclude_categories=["Cs"]), min_size=1)


@given(TEXT, TEXT)
def test_a_key_is_a_safe_file_name_that_gives_back_its_id(one: str, other: str) -> None:
    key = item_key(one)
    assert item_id(key) == one.strip()
    assert (key == item_key(other)) == (one.strip() == other.strip())
    assert item_keys([one, other]).to_pylist() == [key, item_key(other)]
    if 0 < len(key) <= KEY_LENGTH:
        assert re.fullmatch(KEY, key)


def test_ids_of_the_dataset_are_their_own_keys_and_others_stay_readable() -> None:
    assert item_keys(["B0000C73CQ", "0593099435"]).to_pylist() == ["B0000C73CQ", "0593099435"]
    assert item_key("SKU-0001") == "SKU-0001"
    assert item_key("../a.b c/ä") == "%2E%2E%2Fa%2Eb%20c%2F%C3%A4"
