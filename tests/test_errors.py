"""What a user reads about a mistake."""

import os

from skipnet_jax import errors


def test_a_message_is_one_line_whatever_the_names_in_it():
    name = os.fsdecode(b"a\nb\x1b[2J\xff\xe2\x80\xae.jpg")  # a line break, "clear the screen", no text, right to left
    message = errors.UserError(name, f"{name}, a file", "another", "Give\nanother `name`.").message(str.upper)
    written = r"\nb\x1b[2j\udcff\u202e.jpg"
    assert message.lower() == rf"a{written}: got a{written}, a file, expected another." + " give\nanother name."
    message.encode()  # can be printed
    assert errors.one_line("Grüße, 猫 (2)") == "Grüße, 猫 (2)"
