"""Telling prose from tables and code by its shape, and taking the mark-up off documentation."""

import re

_FENCE = re.compile(r"^(```|~~~).*?^\1[^\n]*$", re.MULTILINE | re.DOTALL)
_INDENTED_BLOCK = re.compile(r"(?:^(?: {4}|\t| {2,3}(?=\S))[^\n]*\n|^[ \t]*\n)+", re.MULTILINE)
_DIRECTIVE = re.compile(r"^\.\. [^\n]*\n(?:[ \t]+[^\n]*\n)*", re.MULTILINE)
_COMMENT = re.compile(r"<!--.*?-->", re.DOTALL)
_TAG = re.compile(r"<[^<>\n]{1,300}>")
_BADGE = re.compile(r"\[!\[[^\]]*\]\([^)]*\)\]\([^)]*\)|!\[[^\]]*\]\([^)]*\)")
_LINK = re.compile(r"\[([^\]\n]+)\]\([^)\n]*\)|`([^`<]{1,200}?)\s*<[^>]{1,300}>`_+")
_RULE = re.compile(r"^[ \t]*[-=~^*#+|:\"'`_. ]+[ \t]*$|^[ \t]*[|+].*$|^\[[^\]]+\]: .*$", re.MULTILINE)
_HEADING = re.compile(r"^#+\s*", re.MULTILINE)
_BLANK_LINES = re.compile(r"\n{3,}")
_SENTENCE_END = re.compile(r"[a-z)\"'`][.!?](?:\s|$)")
_LOOKED_AT = 8000  # characters that decide
_LONG_PARAGRAPH = 120  # characters from which on a paragraph is nobody's by chance


def is_prose(text: str) -> bool:
    """Whether most characters are letters of words and sentences end now and then."""
    text = text[:_LOOKED_AT]
    if not text:
        return False
    letters = sum(character.isalpha() for character in text)
    spaces = text.count(" ") + text.count("\n")
    sentences = len(_SENTENCE_END.findall(text))
    return letters > 0.7 * (len(text) - spaces) and spaces < 0.4 * len(text) and sentences * 400 >= len(text)


def clean(text: str) -> str:
    """Documentation without code blocks, badges, tables, directives and link targets."""
    text = _FENCE.sub("", text.replace("\r\n", "\n") + "\n")
    text = _DIRECTIVE.sub("", text)
    text = _INDENTED_BLOCK.sub(lambda block: "\n\n" if block[0].strip() else "\n", text)
    text = _RULE.sub("", _BADGE.sub("", without_comments(text)))
    text = _LINK.sub(lambda link: link[1] or link[2], text)
    text = _HEADING.sub("", _TAG.sub("", text))
    return _BLANK_LINES.sub("\n\n", "\n".join(line.rstrip() for line in text.split("\n"))).strip()


def without_comments(text: str) -> str:
    """Mark-up without its comments, which are licence notices more often than not."""
    return _COMMENT.sub("", text)


def long_paragraphs(text: str) -> list[str]:
    """The paragraphs that identify a text, white space evened out."""
    paragraphs = (" ".join(paragraph.split()) for paragraph in text.split("\n\n"))
    return [paragraph for paragraph in paragraphs if len(paragraph) >= _LONG_PARAGRAPH]
