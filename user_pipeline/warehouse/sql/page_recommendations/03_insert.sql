insert into public.page_recommendations (user_id, email, recommended_url, rank)
select user_id, email, recommended_url, rank from incoming order by user_id, rank
on conflict (user_id, rank) do nothing
