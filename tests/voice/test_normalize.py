"""Written English to spoken English."""

import pytest

from echostream.voice.normalize import spoken_text

CASES = {
    "I have 2 dogs and 13 cats": "I have two dogs and thirteen cats",
    "1,250,000 people": "one million two hundred and fifty thousand people",
    "3.14": "three point one four",
    "-5 degrees": "minus five degrees",
    "room 007": "room zero zero seven",
    "$3.50, $1, $0.99": "three dollars and fifty cents, one dollar, ninety nine cents",
    "$2.5 million": "two point five million dollars",
    "£1.01 or €20": "one pound and one pence or twenty euros",
    "on May 3rd, 2024": "on May third, twenty twenty four",
    "in 1999 and the 1990s": "in nineteen ninety nine and the nineteen nineties",
    "the 21st time": "the twenty first time",
    "at 7:05 pm": "at seven oh five p m",
    "at 9:00": "at nine o'clock",
    "at 3pm": "at three p m",
    "10-20 people": "ten to twenty people",
    "Call 555-1234.": "Call five five five, one two three four.",
    "3/4 of it, 1/2": "three quarters of it, one half",
    "80% humid": "eighty percent humid",
    "5kg or 1 km": "five kilograms or one kilometer",
    "6 ft": "six feet",
    "covid19": "covid nineteen",
    "Dr. Smith & Mr. Jones": "Doctor Smith and Mister Jones",
    "No. 5": "number five",
    "don\u2019t  \n wait": "don't wait",
    "": "",
    "Hello, world!": "Hello, world!",
}


@pytest.mark.parametrize("written", CASES)
def test_written_becomes_spoken(written):
    assert spoken_text(written) == CASES[written]


@pytest.mark.parametrize("written", ["99:99", "1/0", "12345678901234567890", "$", "% %", "1.2.3.4"])
def test_what_is_no_number_is_still_said(written):
    said = spoken_text(written)
    assert not any(c.isdigit() for c in said.replace("99:99", "")) or written == "99:99"
    assert spoken_text(said) == said


def test_spoken_text_stays_as_it_is():
    text = "Nothing here is written otherwise than it is said, is it?"
    assert spoken_text(text) == text
