"""Chat templates as what stands between the turns, held against the templates themselves."""

from __future__ import annotations

import pytest

from chainfed.core.chat import Message, conversation, question
from chainfed.core.errors import ModelError
from chainfed.toolchain.chat_format import chat_of_template, plain_chat

TAGS = (
    "{{ bos_token }}{% for m in messages %}<{{ m.role }}>{{ m.content }}</{{ m.role }}>\n{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)
TRIMMED_WITHOUT_SYSTEM = (
    "{% if messages[0].role == 'system' %}{{ raise_exception('no system') }}{% endif %}"
    "{% for m in messages %}[{{ 'model' if m.role == 'assistant' else m.role }}] {{ m.content | trim }} ;\n{% endfor %}"
    "{% if add_generation_prompt %}[model] {% endif %}"
)
SYSTEM_IN_FIRST_TURN = (
    "{% if messages[0].role == 'system' %}{% set rest = messages[1:] %}{% set system = messages[0].content %}"
    "{% else %}{% set rest = messages %}{% set system = false %}{% endif %}"
    "{% for m in rest %}{% if m.role == 'user' %}{{ bos_token }}[INST] "
    "{% if loop.first and system %}<<{{ system }}>> {% endif %}{{ m.content }} [/INST]"
    "{% else %} {{ m.content }} {{ eos_token }}{% endif %}{% endfor %}"
)
TOKENS = {"bos_token": "<s>", "eos_token": "</s>"}


def test_tags_around_turns() -> None:
    chat = chat_of_template(TAGS, TOKENS, "here")
    assert chat.between["start>user"] == "<s><user>"
    assert chat.between["user>assistant"] == "</user>\n<assistant>"
    assert chat.end_of_turn == "</assistant>"
    assert not chat.strip
    assert not chat.special_tokens
    messages = [Message("system", "s"), Message("user", " q "), Message("assistant", "a")]
    text = "".join(piece.text for piece in conversation(chat, messages))
    assert text == "<s><system>s</system>\n<user> q </user>\n<assistant>a</assistant>\n"
    assert question(chat, messages[1:2]) == "<s><user> q </user>\n<assistant>"


def test_contents_that_a_template_trims_and_roles_that_it_refuses() -> None:
    chat = chat_of_template(TRIMMED_WITHOUT_SYSTEM, TOKENS, "here")
    assert chat.strip
    assert "start>system" not in chat.between
    assert chat.end_of_turn == " ;"


def test_a_system_text_inside_the_first_question() -> None:
    chat = chat_of_template(SYSTEM_IN_FIRST_TURN, TOKENS, "here")
    messages = [Message("system", "s"), Message("user", "q"), Message("assistant", "a")]
    assert "".join(piece.text for piece in conversation(chat, messages)) == "<s>[INST] <<s>> q [/INST] a </s>"
    assert chat.end_of_turn == " </s>"


@pytest.mark.parametrize(
    ("template", "reason"),
    [
        ("{% for m in messages %}{{ m.content | upper }}{% endfor %}", "does more than put fixed text"),
        (
            "{% for m in messages %}{{ m.content }}{{ m.content | length }};{% endfor %}",
            "does more than put fixed text",
        ),
        ("{% for m in messages %}{{ m.content }}{{ loop.index }}{% endfor %}", "does more than put fixed text"),
        ("{{ raise_exception('not today') }}", "cannot be used .not today."),
        ("{% for %}", "cannot be used"),
    ],
)
def test_templates_that_devices_cannot_follow(template: str, reason: str) -> None:
    with pytest.raises(ModelError, match=f"chat template of here {reason}"):
        chat_of_template(template, TOKENS, "here")


def test_headings_where_there_is_no_template() -> None:
    chat = plain_chat("</s>")
    messages = [Message("user", "q"), Message("assistant", "a")]
    text = "".join(piece.text for piece in conversation(chat, messages))
    assert text == "### Instruction:\nq\n\n### Response:\na</s>"
    assert text.startswith(question(chat, messages[:1]))
