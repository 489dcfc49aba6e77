create unique index if not exists user_page_views_key
on public.user_page_views (user_id, public.url_key(url) collate "C")
