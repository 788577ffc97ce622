//! The schema of a store: its creation, and the check that no untrusted role controls it.

use std::collections::HashSet;
use std::time::Duration;

use deadpool_postgres::Object;
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use tokio_postgres::error::SqlState;
use tokio_postgres::types::{ToSql, Type};

use super::error::{failed, setup};
use crate::error::ServerError;

const SCHEMA: &str = include_str!("schema.sql");

/// The comment of a schema of this version.
const VERSION: &str = "Verrou 1";

/// Selects the comment of schema `$1`, and the first object in it that an untrusted role controls: the kind of
/// control, the object's name, the role, and the statement that revokes it if it is a privilege. Returns no row
/// if there is no such schema. Trusted roles are superusers, the current user, the owner of the database, and
/// those in `$2`. Only catalogs are read, so that nothing of the schema is executed.
///
/// It is one statement, which has one snapshot: between two of them a role could rename its schema, so that the
/// first finds the schema and the second nothing in it.
///
/// The owner of a schema or an object can replace it. A role that can create objects in the schema can
/// overload its functions, and one that can create triggers on a table executes code as all who write it.
const EXAMINED: &str = "
with space as (
  select oid, nspname, nspowner, coalesce(nspacl, acldefault('n', nspowner)) as acl
  from pg_namespace where nspname = $1
), relation as (
  select c.oid, c.relname, c.relowner, c.relkind, c.relacl
  from pg_class as c join space on c.relnamespace = space.oid where c.relkind not in ('i', 'I', 'c')
), object (rank, kind, name, role, revoke) as (
  select 1, 'is its owner', '', nspowner, null from space
  union all select 2, 'is the owner of its table', relname::text, relowner, null from relation
  union all select 3, 'is the owner of its function', p.oid::regprocedure::text, p.proowner, null
    from pg_proc as p join space on p.pronamespace = space.oid
  union all select 4, 'is the owner of the trigger on', r.relname::text, p.proowner, null
    from relation as r join pg_trigger as t on t.tgrelid = r.oid join pg_proc as p on p.oid = t.tgfoid
    where not t.tgisinternal
  union all select 5, 'may create objects in it', '', entry.grantee,
    format('revoke create on schema %I', nspname)
    from space, aclexplode(acl) as entry where entry.privilege_type = 'CREATE'
  union all select 6, 'may create triggers on', r.relname::text, entry.grantee,
    format('revoke trigger on %I.%I', nspname, r.relname)
    from space, relation as r, aclexplode(r.relacl) as entry where entry.privilege_type = 'TRIGGER'
), untrusted as (
  select object.kind, object.name, role.rolname::text as role,
    object.revoke || ' from ' || coalesce(quote_ident(role.rolname), 'public') as revoke
  from object left join pg_roles as role on role.oid = object.role
  where not coalesce(role.rolsuper, false)
    and object.role <> (select datdba from pg_database where datname = current_database())
    and coalesce(role.rolname::text <> all (array[current_user::text, 'pg_database_owner'] || $2), true)
  order by object.rank, object.name limit 1
)
select d.description, untrusted.kind, untrusted.name, untrusted.role, untrusted.revoke
from space left join untrusted on true left join pg_description as d
  on d.objoid = space.oid and d.classoid = 'pg_namespace'::regclass and d.objsubid = 0";

/// The characters that are percent-encoded in a role's name in a URL.
const ROLE: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_');

/// Selects one statement for each function of schema `$1` that does not set `search_path`: schemas that
/// earlier versions made have such functions. Sessions of this version set it for them.
const UNSET: &str = "
select format('alter function %s set search_path = pg_catalog, pg_temp', p.oid::regprocedure)
from pg_proc as p join pg_namespace as n on n.oid = p.pronamespace
where n.nspname = $1 and p.prokind = 'f'
  and not coalesce(p.proconfig, '{}') @> '{\"search_path=pg_catalog, pg_temp\"}'
  and pg_has_role(p.proowner, 'usage')";

/// The schema of a store.
pub(super) struct Schema<'a> {
    pub(super) name: &'a str,
    /// The roles of the options `schema-owner`.
    pub(super) trusted: Vec<String>,
    pub(super) server: &'a str,
}

/// The description of a schema in the catalogs.
struct Examined {
    comment: Option<String>,
    untrusted: Option<Untrusted>,
}

/// An untrusted role that controls a schema.
struct Untrusted {
    kind: String,
    /// The object that the role controls; empty for the schema itself.
    object: String,
    /// The role's name; `None` for `PUBLIC`, every role.
    role: Option<String>,
    /// The statement that revokes the control, if it is a privilege.
    revoke: Option<String>,
}

impl Schema<'_> {
    /// Checks the schema, after creating it if it does not exist.
    ///
    /// The unique name of a schema decides which of several concurrent sessions creates it. No role that
    /// may not create it can delay that, as it could by a lock that every role can acquire.
    pub(super) async fn prepare(
        &self,
        client: &Object,
        at_most: Duration,
    ) -> Result<(), ServerError> {
        while !self.is_usable(client).await? {
            let Err(err) = self.create(client, at_most).await else {
                continue;
            };
            let _ = client.batch_execute("rollback").await;
            match err.code() {
                Some(&SqlState::DUPLICATE_SCHEMA | &SqlState::UNIQUE_VIOLATION) => {}
                Some(&SqlState::INSUFFICIENT_PRIVILEGE) => {
                    return Err(self.setup(
                        &format!(
                            "there is no schema `{}`, and this user may not create it",
                            self.name
                        ),
                        "let an administrator run schema.sql, as POSTGRES.md says",
                    ));
                }
                Some(&SqlState::LOCK_NOT_AVAILABLE) => {
                    let why = format!(
                        "another session creates a schema `{}` and has not committed that within \
                         {}; pg_stat_activity shows it",
                        self.name,
                        humantime::format_duration(at_most)
                    );
                    return Err(ServerError::Unavailable {
                        server: self.server.to_owned(),
                        source: why.into(),
                    });
                }
                _ => return Err(self.failed(err)),
            }
        }
        Ok(())
    }

    /// Creates the schema, and revokes what untrusted roles would get by default privileges, in one transaction.
    async fn create(
        &self,
        client: &Object,
        at_most: Duration,
    ) -> Result<(), tokio_postgres::Error> {
        let statements = SCHEMA.replace("SCHEMA", &quoted(self.name));
        let millis = at_most.as_millis().max(1);
        let statements = format!("begin; set local lock_timeout = {millis}; {statements}");
        client.batch_execute(&statements).await?;
        let mut revoked = HashSet::new();
        while let Some(revoke) = self.excessive_privilege(client).await? {
            client.batch_execute(&revoke).await?;
            if !revoked.insert(revoke) {
                break;
            }
        }
        client.batch_execute("commit").await
    }

    /// Returns the statement that revokes a privilege by which an untrusted role controls the schema.
    async fn excessive_privilege(
        &self,
        client: &Object,
    ) -> Result<Option<String>, tokio_postgres::Error> {
        let untrusted = self.examine(client).await?.and_then(|it| it.untrusted);
        Ok(untrusted.and_then(|untrusted| untrusted.revoke))
    }

    /// Returns the description of the schema in the catalogs, in one snapshot, or `None` if there is no schema.
    async fn examine(&self, client: &Object) -> Result<Option<Examined>, tokio_postgres::Error> {
        let parameters: &[(&(dyn ToSql + Sync), Type)] =
            &[(&self.name, Type::TEXT), (&self.trusted, Type::TEXT_ARRAY)];
        let rows = client.query_typed(EXAMINED, parameters).await?;
        let Some(row) = rows.first() else {
            return Ok(None);
        };
        let untrusted = match row.try_get::<_, Option<String>>(1)? {
            Some(kind) => Some(Untrusted {
                kind,
                object: row.try_get(2)?,
                role: row.try_get(3)?,
                revoke: row.try_get(4)?,
            }),
            None => None,
        };
        Ok(Some(Examined {
            comment: row.try_get(0)?,
            untrusted,
        }))
    }

    /// Returns whether the schema exists.
    ///
    /// # Errors
    ///
    /// Returns an error if the schema exists, and is not of this version, or is controlled by an untrusted role.
    async fn is_usable(&self, client: &Object) -> Result<bool, ServerError> {
        let examined = self.examine(client).await;
        let Some(examined) = examined.map_err(|err| self.failed(err))? else {
            return Ok(false);
        };
        if let Some(untrusted) = examined.untrusted {
            return Err(self.untrusted(&untrusted));
        }
        let comment = examined.comment.unwrap_or_default();
        if comment != VERSION {
            return Err(self.setup(
                &format!(
                    "the schema `{}` is not Verrou's, or of another version (`{comment}`)",
                    self.name
                ),
                "name a separate schema: ?schema=NAME",
            ));
        }
        self.set_search_path(client).await?;
        Ok(true)
    }

    /// Returns the error that an untrusted role controls the schema.
    fn untrusted(&self, untrusted: &Untrusted) -> ServerError {
        let Untrusted {
            kind,
            object,
            role,
            revoke,
        } = untrusted;
        let object = match object.as_str() {
            "" => String::new(),
            object => format!(" `{object}`"),
        };
        // An owner may have planted code in the schema, which another owner would not remove.
        let mut advice = match revoke {
            Some(revoke) => format!(
                "let an administrator execute `{revoke}`, or name another schema (?schema=NAME)"
            ),
            None => format!(
                "name another schema (?schema=NAME), or let an administrator drop this one, whose code may be \
                 hostile (`drop schema {} cascade`)",
                quoted(self.name)
            ),
        };
        if let Some(role) = role {
            let role = utf8_percent_encode(role, ROLE);
            advice = format!("{advice}; or, if you trust the role, add schema-owner={role}");
        }
        self.setup(
            &format!(
                "the schema `{}` is not trusted: `{}` {kind}{object}, so this role could execute code as each \
                 user of the schema, and it is neither this user, nor the database's owner, nor a superuser",
                self.name,
                role.as_deref().unwrap_or("PUBLIC")
            ),
            &advice,
        )
    }

    /// Lets each function of the schema set `search_path`, where this user may change the function.
    ///
    /// A failure is ignored: the sessions of this store are safe without it, and the next store that
    /// is opened tries again. It fails if several stores are opened at the same time.
    async fn set_search_path(&self, client: &Object) -> Result<(), ServerError> {
        let unset = client
            .query_typed(UNSET, &[(&self.name, Type::TEXT)])
            .await
            .map_err(|err| self.failed(err))?;
        for row in unset {
            let statement: String = row.try_get(0).map_err(|err| self.failed(err))?;
            if client.batch_execute(&statement).await.is_err() {
                break;
            }
        }
        Ok(())
    }

    fn setup(&self, why: &str, advice: &str) -> ServerError {
        setup(self.server, why, advice)
    }

    fn failed(&self, err: tokio_postgres::Error) -> ServerError {
        failed(self.server, err)
    }
}

/// Returns a quoted SQL identifier.
pub(super) fn quoted(identifier: &str) -> String {
    format!("\"{}\"", identifier.replace('"', "\"\""))
}
