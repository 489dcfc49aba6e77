-- In the order of the key: the index then grows at its end.
insert into public.user_page_views_daily (day, user_id, url, count, last_viewed)
select day::date, user_id, url, count, last_viewed from incoming order by day, user_id
