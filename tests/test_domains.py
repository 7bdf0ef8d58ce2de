"""Domains: the recipe's fourteen, in its order; others are allowed, misspelt ones are noticed."""

from sft.domains import DOMAINS, domain_of, in_order, suggest


def test_there_are_fourteen_domains_each_with_a_name_and_a_line_of_description():
    assert len({domain.slug for domain in DOMAINS}) == len({domain.name for domain in DOMAINS}) == 14
    for domain in DOMAINS:
        assert domain.name
        assert 20 < len(domain.description) < 100
        assert "\n" not in domain.description


def test_every_domain_describes_itself_and_needs_no_suggestion():
    for domain in DOMAINS:
        assert domain_of(domain.slug) is domain
        assert suggest(domain.slug) == ""


def test_a_domain_of_your_own_has_its_slug_as_name():
    assert (domain_of("my-shop").slug, domain_of("my-shop").name) == ("my-shop", "my-shop")


def test_a_misspelt_domain_is_noticed_and_another_is_not():
    assert suggest("multi-lingual") == "Did you mean 'multilingual'?"
    assert suggest("Safety") == "Did you mean 'safety'?"
    assert suggest("software_engineering") == "Did you mean 'software-engineering'?"
    assert suggest("agentic") == suggest("cooking") == ""


def test_reports_show_the_recipe_s_order_then_others_by_name():
    assert in_order(["zoo", "science", "chat", "art", "competition-math"]) == [
        "competition-math",
        "chat",
        "science",
        "art",
        "zoo",
    ]
