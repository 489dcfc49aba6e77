from user_pipeline.recommender.defaults import REGULARISATION
from user_pipeline.recommender.tuning import choose_regularisation
from user_pipeline_tests.recommender.helpers import random_views, views_of


def test_the_default_is_kept_where_nothing_can_be_held_out() -> None:
    assert choose_regularisation(views_of([(0, 0), (1, 1)], 2, 2)) == REGULARISATION


def test_the_choice_is_of_the_grid_and_repeatable() -> None:
    views = random_views(4)

    choices = {choose_regularisation(views, grid=(1.0, 50.0), max_users=100, n_threads=n) for n in (1, 2)}

    assert len(choices) == 1
    assert choices <= {1.0, 50.0}
