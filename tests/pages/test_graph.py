"""graph: a page that stands alone, with every link drawn once, whatever names it holds."""

import re

from sft.pages.graph import COLUMNS, HEIGHT, WIDTH, page, places

NODE = {"digest": "sha256:" + "a" * 64, "get": "dvc pull x", "state": "intact", "facts": {"rows": 1234}}


def chain(**more):
    kinds = [kind for column in COLUMNS for kind in column]
    nodes = [{**NODE, "id": kind, "kind": kind, "title": kind} for kind in kinds]
    nodes += [{**NODE, "id": f"source/{n}", "kind": "source", "title": f"s{n}"} for n in range(20)]
    edges = [[f"source/{n}", "packed"] for n in range(20)] + [["packed", "run"], ["run", "model"]]
    told = {"model": "m", "lineage_key": "k", "where": "here", "nodes": nodes, "edges": edges, "faults": []}
    return {**told, **more}


def test_every_link_is_a_box_and_every_edge_a_line():
    told = chain()
    text = page(told)
    assert text.count('class="box"') == len(told["nodes"]) > 20
    assert text.count('class="edge"') == len(told["edges"])
    loss = {**NODE, "id": "e", "kind": "evaluation", "title": "e", "facts": {"loss": {"before": 2.0, "after": 1.5}}}
    assert "loss 2.000 to 1.500" in page(chain(nodes=[loss], edges=[]))
    for node in told["nodes"]:
        assert f'href="#{node["id"]}"' in text
        assert f'id="{node["id"]}"' in text


def test_boxes_do_not_overlap():
    at = list(places(chain()["nodes"]).values())
    assert len(at) == len(set(at)) > 20
    for x, y in at:
        for other_x, other_y in at:
            if (x, y) != (other_x, other_y):
                assert abs(x - other_x) >= WIDTH or abs(y - other_y) >= HEIGHT


def test_the_page_fetches_nothing_runs_nothing_and_is_the_same_again():
    text = page(chain())
    assert text == page(chain())
    assert not re.search(r"<script|<link|<img|src=|@import|url\(|https?://", text)
    assert all(target.startswith("#") for target in re.findall(r'href="([^"]*)"', text))


def test_names_cannot_become_markup():
    hostile = '"><script>alert(1)</script>'
    node = {**NODE, "id": hostile, "kind": "source", "title": hostile, "facts": {hostile: hostile}, "get": hostile}
    faults = [{"where": hostile, "expected": hostile, "found": hostile}]
    text = page(chain(nodes=[node], edges=[], faults=faults, model=hostile, where=hostile))
    assert "<script" not in text
    assert "&lt;script&gt;" in text
