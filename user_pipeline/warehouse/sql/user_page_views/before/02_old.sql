-- What these days had before: nothing at all when they are new.
create temporary table old on commit drop as
select user_id, url, count, last_viewed from public.user_page_views_daily
where day >= (select first_day from slice) and day < (select end_day from slice)
