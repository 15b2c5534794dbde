"""Find the noun phrase before a box, for dialects that do not mark phrases.

The rules use word lists instead of a part-of-speech tagger. Among the words since the previous box:

1. Words of `BREAKERS` (connectives, prepositions, common verbs) right before the box are skipped: in "the dog is
   located at [box]" the box grounds "the dog".
2. From the last remaining word, the phrase grows to the left until the start of the line, a bullet, a word that ends
   with punctuation, an opening bracket or quote, a word of `BREAKERS`, or past a determiner ("a", "the", "two", "her"):
   "a man riding the horse [box]" gives "the horse".
3. "of" joins ("a group of people") except after a place word ("left of the dog", "in front of the house").
4. A breaker between a determiner and a noun is an adjective: "a standing man".
5. "and" joins two colours or patterns ("a black and white cat"), and one word right after an article to two or more
   words without a determiner: "a salt and pepper shaker".
6. A word that is a verb or a noun (`NOUN_FORMS`) right before the box is the head noun if a determiner stands before it
   with no word of `BREAKERS` between. After "the" or "his" the word just before must not be a plural: "a hot dog stand
   [box]", but "the dogs stand [box]" gives "the dogs".
7. A determiner and place words (`WHERE`) after a preposition give a location: "a man on the left [box]" gives
   "a man", if there is a noun phrase before the preposition in the clause.
8. "of" does not join to words about boxes: "the location of the cat is [box]" gives "the cat".

The word lists are English. In other languages, the phrase is the clause before the box.
"""

from __future__ import annotations

import re

_REACH = 160  # maximum length of a phrase in characters, which bounds the cost of the search


def _words(*lines: str) -> frozenset[str]:
    return frozenset(" ".join(lines).split())


DETERMINERS = _words(
    "a an the this these those my your his her its our their whose some any no each every another other both all",
    "several many few most much half one two three four five six seven eight nine ten eleven twelve dozens",
)
BREAKERS = frozenset({""}) | _words(
    # bullets, headings and the bars of tables
    "• | > # ## ### #### -> → =",
    # connectives and relative words
    "and or but nor so yet as while whilst with without that which who whom where when then than because if like plus",
    # prepositions
    "in on at by to from into onto upon near beside besides behind beneath below under underneath above over between",
    "among amid beyond before after across against along alongside around round through throughout toward towards",
    "inside outside within off out up down about for during via per next adjacent opposite atop",
    # common verbs, and words that come with them
    "is are was were be been being am has have had having can could may might must will would does do did seems seem",
    "appears appear contains contain includes include including shows show showing shown features feature featuring",
    "depicts depict depicting sees see seen sits sit sitting stands stand standing lies lie lying lays laying rests",
    "resting holds hold holding held carries carry carrying wears wear wearing rides ride riding walks walk walking",
    "runs run looks look looking uses use using plays play playing eats eat eating drinks drinking leans lean leaning",
    "hangs hang hanging faces facing watches watching pulls pulling pushes pushing surrounds surrounded surrounding",
    "covered covering filled made placed located positioned situated parked attached mounted dressed gets getting",
    "takes taking puts putting there here also visible not just only",
)
COLOURS = _words(
    "black white grey gray red green blue yellow orange purple pink brown beige tan silver gold golden teal maroon",
    "navy turquoise cream dark light pale bright striped spotted checkered plaid",
)
PLACES = _words("front left right top bottom side middle center centre inside outside out ahead")
WHERE = _words(
    "left right top bottom side middle center centre front back background foreground corner distance edge",
    "upper lower far near very left-hand right-hand far-left far-right",
)
PLACING = _words("in on at to near from toward towards")
ABOUT_BOXES = _words("location locations position positions coordinate coordinates bbox")
NOUN_FORMS = _words("stand play run use ride walk drink look show lay feature")
SINGULAR = _words("a an another each every")
POSSESSIVES = _words("the this my your his her its our their")
PLURALS = _words("people men women children kids police sheep geese")

_BOUNDARY = '.,;:!?)]}"”»…。，、；：！？）】」'
_SENTENCE_END = ".;:!?。；：！？"
_TRAILING = _BOUNDARY + "'’*_-–—([{\"“«（【「"
_LEADING = "([{\"“«'‘*_-–—（【「)]}”»’)】」"
_AFTER_REMARK = ")]）】*_`"
_REMARK = re.compile(r"\s*[(\[（【][^()\[\]（）【】]*[)\]）】][*_`]*\Z")
_FOREIGN = re.compile(r"[。，、；：！？）】」]")


def find_phrase(text: str, start: int, end: int) -> tuple[int, int]:
    """Start and end of the noun phrase at the end of ``text[start:end]``; ``(end, end)`` if there is none.

    >>> text = "There are several pieces of luggage next to a tall man wearing sunglasses"
    >>> [text[slice(*find_phrase(text, 0, end))] for end in (35, 54, 73)]
    ['several pieces of luggage', 'a tall man', 'sunglasses']
    """
    low = max(start, end - _REACH)
    line = text.rfind("\n", low, end)
    if line >= 0:
        start = low = line + 1
    if end > low and text[end - 1] in _AFTER_REMARK:
        # A remark in brackets is not part of the phrase before it: "a dog [sic]", "a man (left)".
        before = _REMARK.sub("", text[low:end])
        stop = low + len(before.rstrip("*_`"))
        if low < stop < end and text[stop - 1] not in _SENTENCE_END + ",":
            found = find_phrase(text, start, stop)
            if found[0] < found[1] and not text[found[1] : stop].lstrip()[:1].isalnum():
                return found
    segment = text[low:end]
    words = segment.lower().split()
    count = len(words)
    least = 1 if low > start and count > 1 else 0  # the first word may be incomplete
    last = _last_word(words, count, least)
    if last <= least:
        return end, end
    first = _first_word(words, last, least)
    if words[last - 1].rstrip(_TRAILING) in WHERE:
        first, last = _what_is_there(words, first, last, least)
    stop = end if last == count else low + len(segment.rsplit(None, count - last)[0])
    begin = low if first == 0 else low + len(segment.rsplit(None, count - first)[0]) + 1
    if text[begin].isalnum() and text[stop - 1].isalnum() and segment.isascii():
        return begin, stop
    return _trim(text, begin, stop, end)


def _last_word(words: list[str], last: int, least: int) -> int:
    """The end of the phrase in ``words[:last]``; ``least`` if there is none."""
    while last > least:
        word = words[last - 1].strip(_TRAILING)
        if word not in BREAKERS or (word in NOUN_FORMS and _is_noun(words, last, least)):
            return last
        last -= 1
        if last > least and words[last - 1][-1] in _SENTENCE_END:
            return least
    return least


def _is_noun(words: list[str], last: int, least: int) -> bool:
    """Whether ``words[last - 1]``, a noun or a verb, is the head of a phrase that starts with a determiner."""
    for index in range(last - 2, least - 1, -1):
        if words[index][-1] in _BOUNDARY:
            return False
        word = words[index].lstrip(_LEADING)
        if word in SINGULAR:
            return True
        if word in POSSESSIVES:
            before = words[last - 2]
            plural = before in PLURALS or (before[-1] == "s" and not before.endswith("ss"))
            return index == last - 2 or not plural
        if word in BREAKERS or word in DETERMINERS:
            return False
    return False


def _first_word(words: list[str], last: int, least: int) -> int:
    """The start of the phrase that ends with ``words[last - 1]``."""
    first = last - 1
    word = words[first]
    while first > least:
        if words[first - 1][-1] in _BOUNDARY or words[first][0] in _LEADING:
            break
        before = words[first - 1].lstrip(_LEADING)
        before_that = words[first - 2].lstrip(_LEADING) if first >= 2 else ""
        if before == "of":
            ends = not before_that or before_that in PLACES or before_that in ABOUT_BOXES
            ends = ends or (before_that in ("box", "boxes") and first >= 3 and words[first - 3] == "bounding")
        elif before == "and" and word in COLOURS:
            ends = before_that not in COLOURS
        elif before == "and":
            ends = not _joins(words, first, last, least)
        elif word in DETERMINERS:
            ends = before not in DETERMINERS
        else:
            ends = before in BREAKERS and before_that not in DETERMINERS
        if ends:
            break
        first, word = first - 1, before
    return first


def _joins(words: list[str], first: int, last: int, least: int) -> bool:
    """Whether the "and" before ``words[first:last]`` joins them to one word after an article."""
    if last - first < 2 or first - 3 < least or words[first - 3].lstrip(_LEADING) not in ("a", "an", "the"):
        return False
    word = words[first - 2]
    return word[-1] not in _BOUNDARY and word not in BREAKERS and DETERMINERS.isdisjoint(words[first:last])


def _what_is_there(words: list[str], first: int, last: int, least: int) -> tuple[int, int]:
    """If ``words[first:last]`` are only a place after a preposition, the phrase before that; else unchanged."""
    is_place = (
        first > least
        and words[first].lstrip(_LEADING) in DETERMINERS
        and words[first - 1].lstrip(_LEADING) in PLACING
        and WHERE.issuperset(word.strip(_TRAILING) for word in words[first + 1 : last])
    )
    if not is_place:
        return first, last
    end = first - 1
    while end > least and words[end - 1][-1] not in _BOUNDARY:
        word = words[end - 1].lstrip(_LEADING)
        if word not in BREAKERS or (word in NOUN_FORMS and _is_noun(words, end, least)):
            return _first_word(words, end, least), end
        end -= 1
    return first, last


def _trim(text: str, start: int, stop: int, end: int) -> tuple[int, int]:
    """The phrase without surrounding punctuation and white space; ``(end, end)`` if nothing remains."""
    while stop > start and (text[stop - 1] in _TRAILING or text[stop - 1].isspace()):
        stop -= 1
    while start < stop and (text[start] in _LEADING or text[start].isspace()):
        start += 1
    for match in _FOREIGN.finditer(text, start, stop):
        start = match.end()
    return (start, stop) if start < stop else (end, end)
