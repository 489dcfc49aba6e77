-- In the order of the writers of both tables; readers go on.
lock table public.users, public.users_daily, public.user_page_views, public.user_page_views_daily
in share row exclusive mode
