-- recommendation_parameters: the snapshot of the newest day.

-- name: create
do $$
begin
  create table if not exists public.recommendation_parameters (
    rank integer not null,
    is_chosen boolean not null,
    chosen_by text,
    personal boolean not null,
    regularisation double precision not null,
    long_range double precision not null,
    direction double precision not null,
    trend double precision not null,
    days bigint not null,
    users bigint not null,
    recall_at_3 double precision,
    gain double precision,
    standard_error double precision,
    primary key (rank)
  );
  -- The day recommendation_parameters is as of: one row, or none before the first.
  create table if not exists public.recommendation_parameters_day (
    day date not null,
    is_only_row boolean primary key default true check (is_only_row)
  );
end
$$

-- name: lock
lock table public.recommendation_parameters in share row exclusive mode

-- name: delete
-- Only what changes is written.
delete from public.recommendation_parameters r
where not exists (
  select from incoming i
  where i.rank is not distinct from r.rank
    and i.is_chosen is not distinct from r.is_chosen
    and i.chosen_by is not distinct from r.chosen_by
    and i.personal is not distinct from r.personal
    and i.regularisation is not distinct from r.regularisation
    and i.long_range is not distinct from r.long_range
    and i.direction is not distinct from r.direction
    and i.trend is not distinct from r.trend
    and i.days is not distinct from r.days
    and i.users is not distinct from r.users
    and i.recall_at_3 is not distinct from r.recall_at_3
    and i.gain is not distinct from r.gain
    and i.standard_error is not distinct from r.standard_error
)

-- name: insert
insert into public.recommendation_parameters (rank, is_chosen, chosen_by, personal, regularisation, long_range, direction, trend, days, users, recall_at_3, gain, standard_error)
select rank, is_chosen, chosen_by, personal, regularisation, long_range, direction, trend, days, users, recall_at_3, gain, standard_error from incoming order by rank
on conflict do nothing

-- name: day
insert into public.recommendation_parameters_day (day) values ($1)
on conflict (is_only_row) do update set day = excluded.day

-- name: analyze
analyze public.recommendation_parameters
