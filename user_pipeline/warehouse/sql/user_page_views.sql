-- user_page_views: who viewed which page, how often and when last, over all days. It is kept by the changes of each day.

-- name: create
do $$
begin
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
  create table public.user_page_views (
    user_id bigint not null,
    email text,
    url text not null,
    count bigint not null check (count > 0),
    last_viewed timestamp not null
  ) with (
    fillfactor = 85, -- room in each page for the next day's version of some of its rows
    -- A day changes a few of a hundred rows. By the default, a fifth, old versions would pile up for a week, and then
    -- take long to clear away.
    autovacuum_vacuum_scale_factor = 0.02,
    autovacuum_vacuum_insert_scale_factor = 0.02,
    autovacuum_analyze_scale_factor = 0.02
  );
end
$$

-- name: lock
-- One writer at a time; readers go on. The writer of users takes the same lock, so no e-mail slips between.
lock table public.user_page_views in share row exclusive mode

-- name: create_key
-- An empty table has no key until its first rows are there: that is quicker. Asked for first: only the table's owner
-- may make an index, even one that is there.
do $$
begin
  if to_regclass('public.user_page_views_key') is null then
    create unique index user_page_views_key
      on public.user_page_views (user_id, public.url_key(url) collate "C");
  end if;
end
$$

-- name: add
-- Pairs that the replaced days did not have before: new, or known from other days. They come in the order of the key,
-- so that each page of its index is visited once.
insert into public.user_page_views as v (user_id, email, url, count, last_viewed)
select a.user_id, u.email, a.url, a.count, a.last_viewed
from added a left join public.users u on u.user_id = a.user_id
on conflict (user_id, public.url_key(url) collate "C") do update
set count = v.count + excluded.count, last_viewed = greatest(v.last_viewed, excluded.last_viewed)

-- name: delete
-- Pairs that no day has any more.
delete from public.user_page_views v using changed c
where v.user_id = c.user_id
  and public.url_key(v.url) collate "C" = public.url_key(c.url) collate "C"
  and v.count + c.count = 0

-- name: update
-- Pairs that the replaced days had before. If the last view of all was in them, that of now is the last one, if there is
-- one: later days have no view of the pair, earlier days have earlier ones.
update public.user_page_views v
set count = v.count + c.count,
  last_viewed = case when v.last_viewed = c.old_last_viewed then coalesce(c.last_viewed, v.last_viewed)
    else greatest(v.last_viewed, c.last_viewed) end
from changed c
where v.user_id = c.user_id
  and public.url_key(v.url) collate "C" = public.url_key(c.url) collate "C"

-- name: lost
-- Pairs whose last view was in the replaced days, which have none any more. It is looked for in earlier days: later ones
-- cannot hold it, since their views would have been the last ones.
do $$
begin
  create temporary table lost on commit drop as
  select c.user_id, c.url
  from changed c join public.user_page_views v
    on v.user_id = c.user_id and public.url_key(v.url) collate "C" = public.url_key(c.url) collate "C"
  where v.last_viewed = c.old_last_viewed and c.last_viewed is null;
  create temporary table found (user_id bigint, url text, last_viewed timestamp) on commit drop;
end
$$

-- name: last_viewed
-- The last views of those pairs, found in earlier days.
update public.user_page_views v set last_viewed = f.last_viewed
from found f
where v.user_id = f.user_id and public.url_key(v.url) collate "C" = public.url_key(f.url) collate "C"

-- Full refresh: ``expected`` holds the pairs the table must have.

-- name: nothing_expected
create temporary table expected (like public.user_page_views) on commit drop

-- name: delete_unexpected
delete from public.user_page_views v
where not exists (select from expected e where e.user_id = v.user_id and e.url = v.url)

-- name: upsert_expected
insert into public.user_page_views as v (user_id, email, url, count, last_viewed)
select e.user_id, u.email, e.url, e.count, e.last_viewed
from expected e left join public.users u on u.user_id = e.user_id
order by e.user_id, e.url collate "C"
on conflict (user_id, public.url_key(url) collate "C") do update
set email = excluded.email, count = excluded.count, last_viewed = excluded.last_viewed
where (v.email, v.count, v.last_viewed) is distinct from (excluded.email, excluded.count, excluded.last_viewed)
