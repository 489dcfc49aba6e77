insert into public.user_page_views as v (user_id, email, url, count, last_viewed)
select user_id, email, url, count, last_viewed from pairs order by user_id, url collate "C"
on conflict (user_id, public.url_key(url) collate "C") do update
set email = excluded.email, count = excluded.count, last_viewed = excluded.last_viewed
where (v.email, v.count, v.last_viewed) is distinct from (excluded.email, excluded.count, excluded.last_viewed)
