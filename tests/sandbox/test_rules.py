"""X's rule language: what is taken and what is refused, in X's words."""

import pytest

from sandbox.rules import All, Any, Not, RuleError, Term, parse


def text(value: str) -> tuple[str, str]:
    return ("text", value)


def shape(expression):
    if isinstance(expression, Term):
        return (expression.kind, expression.value)
    if isinstance(expression, Not):
        return ("not", shape(expression.of))
    return ("all" if isinstance(expression, All) else "any", *map(shape, expression.of))


@pytest.mark.parametrize(
    ("rule", "expected"),
    [
        ("python", text("python")),
        ('"a b"', text("a b")),
        ("python lang:en -is:retweet", ("all", text("python"), ("lang", "en"), ("not", ("is", "retweet")))),
        ("a1 b1 OR c1", ("any", ("all", text("a1"), text("b1")), text("c1"))),
        ("a1 (b1 OR c1)", ("all", text("a1"), ("any", text("b1"), text("c1")))),
        ("#Rust -from:Bob", ("all", ("hashtag", "rust"), ("not", ("from", "bob")))),
        ("-(a1 OR b1) c1", ("all", ("not", ("any", text("a1"), text("b1"))), text("c1"))),
        ("from:@Ann", ("from", "ann")),
        ("@bob $SPY", ("all", ("mention", "bob"), ("cashtag", "spy"))),
    ],
)
def test_parses(rule, expected):
    assert shape(parse(rule)) == expected


@pytest.mark.parametrize(
    ("rule", "complaint"),
    [
        ("", "at least one positive, non-stopword clause"),
        ("a", "at least one positive, non-stopword clause"),
        ("-python", "at least one positive, non-stopword clause"),
        ("python OR -rust", "at least one positive, non-stopword clause"),
        ("lang:en", "is/has/lang cannot be used as a standalone operator"),
        ("lang:en -is:retweet", "is/has/lang cannot be used as a standalone operator"),
        ("url:foo python", "Reference to invalid operator 'url'"),
        ("python has:polls", "Reference to invalid operator 'has:polls'"),
        ("x1 and y1", "Ambiguous use of and as a keyword"),
        ("(x1 y1", "missing ')' at '<EOF>'"),
        ("x1) y1", "missing EOF at ')' (at position 3)"),
        ("x1 OR", "no viable alternative at input '<EOF>'"),
        ("OR x1", "no viable alternative at input 'OR'"),
        ("()", "no viable alternative at input ')'"),
        ("<", "no viable alternative at character '<'"),
        ('"', "no viable alternative at character '\"'"),
    ],
)
def test_refuses_in_the_words_of_x(rule, complaint):
    with pytest.raises(RuleError) as refused:
        parse(rule)
    assert complaint in str(refused.value)


def test_any_is_an_expression_of_its_own():
    assert isinstance(parse("x1 OR y1"), Any)
