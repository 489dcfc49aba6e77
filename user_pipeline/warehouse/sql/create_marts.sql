-- The tables of the analytics database: what people query, and the contributions of each day it is kept from.
do $$
begin
  create table if not exists public.users (
    user_id bigint primary key,
    email text not null,
    name text not null,
    updated_at timestamp not null
  );
  create table if not exists public.users_daily (
    day date not null,
    user_id bigint not null,
    email text not null,
    name text not null,
    updated_at timestamp not null,
    primary key (user_id, day)
  );
  create index if not exists users_daily_day_idx on public.users_daily (day);
  -- A url may be longer than an index entry can be: from 501 bytes on its key is its beginning and its digest,
  -- which together are longer than any url that is its own key. Immutable in truth too: only convert_to is not
  -- declared so, because databases differ in their encodings.
  create or replace function public.url_digest(url text) returns bytea
    language sql immutable strict parallel safe
    return sha256(convert_to(url, 'UTF8'));
  create or replace function public.url_key(url text) returns text
    language sql immutable parallel safe
    return case when octet_length(url) <= 500 then url
      else left(url, 450) || encode(public.url_digest(url), 'hex') end;
  create table if not exists public.user_page_views (
    user_id bigint not null,
    email text,
    url text not null,
    count bigint not null check (count > 0),
    last_viewed timestamp not null
  ) with (fillfactor = 85); -- room in each page for the next day's version of some of its rows
  create table if not exists public.user_page_views_daily (
    day date not null,
    user_id bigint not null,
    url text not null,
    count bigint not null check (count > 0),
    last_viewed timestamp not null
  );
  -- An earlier version had digests in both.
  if to_regclass('public.user_page_views_daily_idx') is null then
    drop index if exists public.user_page_views_key, public.user_page_views_daily_key;
  end if;
  -- A day's pairs are unique because they are summed up; to find and delete them takes no more than this.
  create index if not exists user_page_views_daily_idx
    on public.user_page_views_daily (day, user_id);
  create table if not exists public.page_recommendations (
    user_id bigint not null,
    email text,
    recommended_url text not null,
    rank integer not null check (rank between 1 and 3),
    primary key (user_id, rank)
  );
  -- The day page_recommendations is as of: one row, or none before the first.
  create table if not exists public.page_recommendations_day (
    day date not null,
    is_only_row boolean primary key default true check (is_only_row)
  );
end
$$
