-- recommendation_quality: how good the recommendations of the day before were, a row a day.

-- name: create
do $$
begin
  create table public.recommendation_quality (
    day date,
    users bigint,
    hit_rate double precision,
    recall_at_3 double precision,
    popularity_hit_rate double precision,
    coverage double precision,
    fallback_share double precision
  );
  create index on public.recommendation_quality (day);
end
$$
