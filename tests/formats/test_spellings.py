"""The tables of spellings: no name means two things, and what is plain needs no respelling."""

from sft.formats import spellings


def test_what_is_plain_is_its_own_name():
    for role, keys in spellings.PLAIN_KEYS.items():
        assert all(spellings.MESSAGE_KEYS[role][key] == key for key in keys)
    for key in spellings.PLAIN_CALL_KEYS | spellings.PLAIN_FUNCTION_KEYS:
        assert spellings.CALL_KEYS[key] == key


def test_roles_are_in_lower_case_and_have_keys():
    assert all(name == name.lower() for name in spellings.ROLES)
    assert set(spellings.ROLES.values()) == spellings.MESSAGE_KEYS.keys()


def test_parts_have_keys_unless_nobody_can_read_them():
    assert set(spellings.PARTS.values()) == spellings.PART_KEYS.keys() | {"hidden"}


def test_media_are_known_by_their_names_alone():
    for name in ("image", "images", "image_url", "Images", "audio_path", "videos"):
        assert spellings.MEDIA.fullmatch(name), name
    for name in ("image_id", "imagery", "photographer", "audiobook", "speech"):
        assert not spellings.MEDIA.fullmatch(name), name
