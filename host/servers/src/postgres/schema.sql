-- Verrou's schema for PostgreSQL, 12 or later. The first store that is opened by a user with the necessary
-- privileges creates it; otherwise run this by hand, in one transaction, and grant the users the privileges that
-- `host/servers/POSTGRES.md` lists. SCHEMA stands for the schema's name, "verrou" unless the URL has another.
--
-- Every operation is one function, which begins by locking the row of its name, so that the operations on a name
-- have one order. Rows are never removed, because a fence must be greater than all before it. Times are read from
-- the server's clock (clock_timestamp(), because an operation may have waited for a row); lengths are microseconds.
--
-- Each function sets search_path, so that no operator or function of another schema runs with the rights of its
-- caller. Without it, `public.*(bigint, interval)` would be a better match than pg_catalog's.

set local search_path = pg_catalog, pg_temp;

create schema SCHEMA;

create table SCHEMA.lock (
  name text collate "C" primary key,
  -- The holder: none if owner is null or expires is in the past. A lease without expires does not end.
  owner text,
  fence bigint not null default 0,
  expires timestamptz,
  -- The requested ttl, and a description of the holder for people.
  ttl bigint,
  since timestamptz,
  about text,
  -- The channel on which the holder is notified when its lease is revoked.
  channel text,
  -- The hand-off reservation of a released lock: the head waiter, and the end.
  kept_for text,
  kept_until timestamptz
) with (fillfactor = 50);

-- The wait queue: the tickets of waiters, each valid until there_until.
create table SCHEMA.waiter (
  name text collate "C",
  owner text,
  ticket bigint generated always as identity,
  there_until timestamptz not null,
  channel text not null,
  primary key (name, owner)
);
create index waiter_in_order on SCHEMA.waiter (name, ticket);

-- Returns the row of a name, locked until the transaction ends.
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

-- Returns the head waiter, after deleting the tickets before it whose deadline has passed.
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

-- Reserves the free lock for the head waiter and notifies it; notifies also the next waiter, which tries the lock
-- by itself when the reservation has ended. Without waiters, nothing is notified: transactions that notify commit
-- one after the other.
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

-- Hands a lock off that was free already: a head waiter that was notified is not notified again, and its
-- reservation is not prolonged.
create function SCHEMA.hand_on(it SCHEMA.lock, _now timestamptz, _kept bigint) returns void
language plpgsql set search_path = pg_catalog, pg_temp as $$
begin
  if it.kept_for is distinct from SCHEMA.first(it.name, _now) then
    perform SCHEMA.hand_over(it.name, _now, _kept);
  end if;
end $$;

-- Acquires a free name. Returns the fence of the grant, or for how long the name stays taken.
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
    -- The request is a retry, because the answer to an earlier one was lost.
    update SCHEMA.lock set expires = SCHEMA.after(_now, _lasts), ttl = _ttl where name = _name;
    granted := true;
    number := it.fence;
    return;
  end if;
  loop
    head := SCHEMA.first(_name, _now);
    exit when head is null or head = _owner;
    if it.kept_for is distinct from head then
      -- The lease has expired, or the waiter with the reservation did not acquire the lock.
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

-- Extends a lease from now on. Returns whether the owner holds the name.
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

-- Releases a name, and deletes the owner's ticket. Returns whether the owner held the name.
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

-- Force-releases a name, or only the grant with that fence, and notifies its holder.
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

-- Takes a ticket, or only renews an existing one. Returns whether the owner is to try the lock now, which includes
-- an owner whose ticket is lost.
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

-- Deletes the owner's ticket.
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
