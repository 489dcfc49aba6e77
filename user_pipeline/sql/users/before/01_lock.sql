-- One writer at a time; readers go on. user_page_views holds a copy of each e-mail and changes along.
lock table public.users, public.users_daily, public.user_page_views in share row exclusive mode
