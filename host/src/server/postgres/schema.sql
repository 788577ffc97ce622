-- What Verrou keeps in PostgreSQL, 12 or later. It is made when a store is first opened by a user who may do
-- so; otherwise run this by hand, in one transaction, and let the users have what `host/POSTGRES.md` says.
-- SCHEMA stands for the schema's name, "verrou" unless a URL says otherwise.
--
-- Every step is one function, and begins by locking the row of its name, so that the steps on a name have
-- one order. Rows are never removed: a fence has to be greater than all before it. Times are the server's
-- clock's (clock_timestamp(), for a step may have waited), lengths are microseconds.
--
-- Each function sets search_path, so that no operator or function of another schema runs with the rights of its
-- caller. Without it, `public.*(bigint, interval)` would be a better match than pg_catalog's.

set local search_path = pg_catalog, pg_temp;

create schema SCHEMA;

create table SCHEMA.lock (
  name text collate "C" primary key,
  -- Nobody holds it when there is none, or its time has passed; it does not end when that is null.
  owner text,
  fence bigint not null default 0,
  expires timestamptz,
  -- What its holder asked for, and is, for people.
  ttl bigint,
  since timestamptz,
  about text,
  -- Where its holder is told when the lock is taken away.
  channel text,
  -- For whom of those who wait it is kept, since it was given back.
  kept_for text,
  kept_until timestamptz
) with (fillfactor = 50);

-- Who waits, in the order in which they came, as long as they are believed to be there.
create table SCHEMA.waiter (
  name text collate "C",
  owner text,
  ticket bigint generated always as identity,
  there_until timestamptz not null,
  channel text not null,
  primary key (name, owner)
);
create index waiter_in_order on SCHEMA.waiter (name, ticket);

-- The row of a name, locked until the step has ended.
create function SCHEMA.locked(_name text) returns SCHEMA.lock
language plpgsql set search_path = pg_catalog, pg_temp as $$
declare
  it SCHEMA.lock;
begin
  loop
    select * into it from SCHEMA.lock where name = _name for update;
    if found then return it; end if;
    insert into SCHEMA.lock (name) values (_name) on conflict do nothing;
  end loop;
end $$;

create function SCHEMA.is_held(it SCHEMA.lock, _now timestamptz) returns boolean
language sql immutable set search_path = pg_catalog, pg_temp as $$
  select it.owner is not null and (it.expires is null or it.expires > _now)
$$;

create function SCHEMA.after(_now timestamptz, _length bigint) returns timestamptz
language sql immutable set search_path = pg_catalog, pg_temp as $$
  select _now + _length * interval '1 microsecond'
$$;

create function SCHEMA.length_until(_end timestamptz, _now timestamptz) returns bigint
language sql immutable set search_path = pg_catalog, pg_temp as $$
  select ceil(extract(epoch from _end - _now) * 1000000)::bigint
$$;

-- The first of those who wait and are believed to be there.
create function SCHEMA.first(_name text, _now timestamptz) returns text
language plpgsql set search_path = pg_catalog, pg_temp as $$
declare
  head SCHEMA.waiter;
begin
  loop
    select * into head from SCHEMA.waiter where name = _name order by ticket limit 1;
    if not found then return null; end if;
    if head.there_until >= _now then return head.owner; end if;
    delete from SCHEMA.waiter where name = _name and owner = head.owner;
  end loop;
end $$;

-- Tells the first of those who wait that the lock is free, and keeps it for them for a while; and the second,
-- who looks for itself when that has passed. Nobody is told where nobody waits: all transactions that tell
-- something wait for each other.
create function SCHEMA.hand_over(_name text, _now timestamptz, _kept bigint) returns void
language plpgsql set search_path = pg_catalog, pg_temp as $$
declare
  head text := SCHEMA.first(_name, _now);
begin
  if head is null then return; end if;
  update SCHEMA.lock set kept_for = head, kept_until = SCHEMA.after(_now, _kept) where name = _name;
  perform pg_notify(channel, case owner when head then owner else owner || ' later' end)
    from (select * from SCHEMA.waiter where name = _name order by ticket limit 2) as next;
end $$;

-- Where nobody held it: who was told is not told again, nor given more time.
create function SCHEMA.hand_on(it SCHEMA.lock, _now timestamptz, _kept bigint) returns void
language plpgsql set search_path = pg_catalog, pg_temp as $$
begin
  if it.kept_for is distinct from SCHEMA.first(it.name, _now) then
    perform SCHEMA.hand_over(it.name, _now, _kept);
  end if;
end $$;

-- Records a claim if its name is free: its fence, or for how long the name stays taken.
create function SCHEMA.acquire(
  _name text, _owner text, _lasts bigint, _ttl bigint, _about text, _channel text, _kept bigint,
  out granted boolean, out number bigint
)
language plpgsql set search_path = pg_catalog, pg_temp as $$
declare
  it SCHEMA.lock := SCHEMA.locked(_name);
  _now timestamptz := clock_timestamp();
  head text;
begin
  granted := false;
  if SCHEMA.is_held(it, _now) then
    if it.owner <> _owner then
      number := SCHEMA.length_until(it.expires, _now);
      return;
    end if;
    -- The retry of a request whose answer was lost.
    update SCHEMA.lock set expires = SCHEMA.after(_now, _lasts), ttl = _ttl where name = _name;
    granted := true;
    number := it.fence;
    return;
  end if;
  loop
    head := SCHEMA.first(_name, _now);
    exit when head is null or head = _owner;
    if it.kept_for is distinct from head then
      -- It has ended by its time, or who was the first has not come.
      perform SCHEMA.hand_over(_name, _now, _kept);
      number := _kept;
      return;
    elsif _now < it.kept_until then
      number := SCHEMA.length_until(it.kept_until, _now);
      return;
    end if;
    delete from SCHEMA.waiter where name = _name and owner = head;
  end loop;
  delete from SCHEMA.waiter where name = _name and owner = _owner;
  update SCHEMA.lock set
    owner = _owner, fence = fence + 1, expires = SCHEMA.after(_now, _lasts), ttl = _ttl, since = _now,
    about = _about, channel = _channel, kept_for = null
    where name = _name returning fence into number;
  granted := true;
end $$;

-- Lets a record last from now on.
create function SCHEMA.extend(_name text, _owner text, _lasts bigint, _ttl bigint, _channel text)
returns boolean
language plpgsql set search_path = pg_catalog, pg_temp as $$
declare
  it SCHEMA.lock := SCHEMA.locked(_name);
  _now timestamptz := clock_timestamp();
begin
  if not SCHEMA.is_held(it, _now) or it.owner <> _owner then return false; end if;
  update SCHEMA.lock set expires = SCHEMA.after(_now, _lasts), ttl = _ttl, channel = _channel
    where name = _name;
  return true;
end $$;

-- Frees a name, and leaves nothing of its owner.
create function SCHEMA.release(_name text, _owner text, _kept bigint) returns boolean
language plpgsql set search_path = pg_catalog, pg_temp as $$
declare
  it SCHEMA.lock := SCHEMA.locked(_name);
  _now timestamptz := clock_timestamp();
  held boolean := SCHEMA.is_held(it, _now);
begin
  delete from SCHEMA.waiter where name = _name and owner = _owner;
  if it.owner = _owner then
    update SCHEMA.lock set owner = null where name = _name;
    perform SCHEMA.hand_over(_name, _now, _kept);
  elsif not held then
    perform SCHEMA.hand_on(it, _now, _kept);
  end if;
  return held and it.owner = _owner;
end $$;

-- Frees a name, whoever holds it, or only if it is held under that fence, and tells its holder.
create function SCHEMA.evict(_name text, _only bigint, _kept bigint) returns boolean
language plpgsql set search_path = pg_catalog, pg_temp as $$
declare
  it SCHEMA.lock := SCHEMA.locked(_name);
  _now timestamptz := clock_timestamp();
begin
  if not SCHEMA.is_held(it, _now) or it.fence <> _only then return false; end if;
  update SCHEMA.lock set owner = null where name = _name;
  perform pg_notify(it.channel, it.owner);
  perform SCHEMA.hand_over(_name, _now, _kept);
  return true;
end $$;

-- Takes a place among those who wait, or only keeps the one it has: whether its owner is to ask for the lock now,
-- as who has lost its place is.
create function SCHEMA.wait(_name text, _owner text, _believed bigint, _channel text, _only_keep boolean)
returns boolean
language plpgsql set search_path = pg_catalog, pg_temp as $$
declare
  it SCHEMA.lock := SCHEMA.locked(_name);
  _now timestamptz := clock_timestamp();
  head text;
begin
  if _only_keep and not exists (select from SCHEMA.waiter where name = _name and owner = _owner) then
    return true;
  end if;
  if SCHEMA.is_held(it, _now) then
    if it.owner = _owner then return true; end if;
  else
    head := SCHEMA.first(_name, _now);
    if head is null or head = _owner then return true; end if;
  end if;
  insert into SCHEMA.waiter (name, owner, there_until, channel)
    values (_name, _owner, SCHEMA.after(_now, _believed), _channel)
    on conflict (name, owner) do update set there_until = excluded.there_until, channel = excluded.channel;
  return false;
end $$;

-- Gives a place up.
create function SCHEMA.leave(_name text, _owner text, _kept bigint) returns void
language plpgsql set search_path = pg_catalog, pg_temp as $$
declare
  it SCHEMA.lock := SCHEMA.locked(_name);
  _now timestamptz := clock_timestamp();
begin
  delete from SCHEMA.waiter where name = _name and owner = _owner;
  if not SCHEMA.is_held(it, _now) then perform SCHEMA.hand_on(it, _now, _kept); end if;
end $$;

comment on schema SCHEMA is 'Verrou 1';
