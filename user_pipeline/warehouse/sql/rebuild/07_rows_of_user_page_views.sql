delete from public.user_page_views v
where not exists (select from pairs p where p.user_id = v.user_id and p.url = v.url)
