from pipeline.names import label, printable


def test_names_from_archives_print_and_can_be_encoded() -> None:
    assert printable("Silhouette_000-00.7z") == "Silhouette_000-00.7z"
    assert printable("步态 ü <b>") == "步态 ü <b>"
    assert printable("a\udcffb") == "a\\udcffb"
    assert printable("a\0b\x1b[31m\n\u202egnp.exe") == "a\\x00b\\x1b[31m\\n\\u202egnp.exe"
    long = printable("x" * 60_000 + "frame.png")
    assert len(long) == 200
    assert long.endswith("frame.png")
    assert "…" in long
    assert len(printable("\udcff" * 60_000)) == 200


def test_what_is_drawn_is_ascii_and_short() -> None:
    assert label("090") == "090"
    assert label("步") == "\\u6b65"
    assert label("x" * 100 + "y").endswith("xxy")
    assert len(label("\udcff" * 500)) <= 26
    assert label("x" * 100).isascii()
