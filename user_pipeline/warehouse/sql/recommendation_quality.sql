-- recommendation_quality: how good the recommendations of the day before were, a row a day.

-- name: create
do $$
begin
  create table public.recommendation_quality (
    day date,
    users bigint,
    hit_rate double precision,
    hit_rate_low double precision,
    hit_rate_high double precision,
    recall_at_3 double precision,
    ndcg_at_3 double precision,
    popularity_hit_rate double precision,
    trend_hit_rate double precision,
    gain double precision,
    gain_low double precision,
    gain_high double precision,
    mean_popularity double precision,
    distinct_share double precision,
    coverage double precision,
    fallback_share double precision
  );
  create index on public.recommendation_quality (day);
end
$$
