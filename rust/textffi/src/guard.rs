//! What keeps a hostile template within bounds where minijinja's fuel does not reach.
//!
//! Fuel pays for instructions, for strings and for the slots of lists and maps, but not for walks over nested
//! values: `x = [x, x]` sixty times over is cheap to build, and would be compared, joined or printed for ages. So a
//! template is rewritten before it is compiled: wherever a value is about to be walked, and wherever a list, a map
//! or the result of a call comes into being, the filter `GUARD` is applied to it. It walks the value once, pays for
//! that with fuel, and refuses what is too large, too deep or cyclic; otherwise it returns the value as it is, or a
//! list of what a lazy value yields, since lazy values of lazy values cost more the more they are nested.
//!
//! Limits on the source come first (`check_source`): the parser, the compiler and this rewriting recurse over it.

use minijinja::machinery::ast::{self, CallArg, Expr, Spanned, Stmt};
use minijinja::machinery::{tokenize, Span, Token};
use minijinja::syntax::SyntaxConfig;
use minijinja::value::{Value, ValueKind};
use minijinja::{Error, ErrorKind, State};

/// No template can spell these.
pub const GUARD: &str = "#guard";
pub const GUARD_ATTRIBUTE: &str = "#guard-attribute";
pub const GUARD_TEXT: &str = "#guard-text";

/// Tokens in one `{{ }}` or `{% %}`. Each may nest an expression one deeper.
const TAG_TOKENS_MAX: usize = 2000;
/// `elif` in one template. Each nests a statement one deeper.
const ELIFS_MAX: usize = 500;
/// Levels of lists and maps: JSON comes with at most 128.
const DEPTH_MAX: usize = 200;
/// Size of one value, its parts counted as often as they occur: items, and 64 bytes of strings each.
const UNITS_MAX: u64 = 1 << 19;
/// What a walk pays for: so many units are one unit of fuel.
const UNITS_PER_STEP: u64 = 32;
/// Items of a list made of a lazy value, for one unit of fuel.
const ITEMS_PER_STEP: u64 = 8;

/// These look at no more of a value than its kind or its length, or pay themselves.
const SHALLOW_FILTERS: [&str; 7] = ["count", "d", "default", "first", "last", "length", "tojson"];
const SHALLOW_TESTS: [&str; 12] = [
    "boolean",
    "defined",
    "false",
    "float",
    "integer",
    "iterable",
    "mapping",
    "none",
    "number",
    "sequence",
    "true",
    "undefined",
];

/// A value or an output that is larger than allowed.
#[derive(Debug)]
pub struct TooLarge(pub String);

impl std::fmt::Display for TooLarge {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}
impl std::error::Error for TooLarge {}

pub fn too_large(message: String) -> Error {
    Error::new(ErrorKind::InvalidOperation, "too large").with_source(TooLarge(message))
}

/// Errors: the message, with the line.
pub fn check_source(source: &str, syntax: &SyntaxConfig) -> Result<(), String> {
    let (mut tag_tokens, mut elifs) = (0, 0);
    for token in tokenize(source, false, syntax.clone()) {
        // What cannot be read as tokens is the parser's to report.
        let Ok((token, span)) = token else { return Ok(()) };
        match token {
            Token::TemplateData(_) | Token::VariableStart | Token::BlockStart => tag_tokens = 0,
            Token::Ident("elif") => elifs += 1,
            _ => {}
        }
        tag_tokens += 1;
        let line = span.start_line;
        if tag_tokens > TAG_TOKENS_MAX {
            return Err(format!("line {line}: a tag of more than {TAG_TOKENS_MAX} tokens"));
        }
        if elifs > ELIFS_MAX {
            return Err(format!("line {line}: more than {ELIFS_MAX} elifs in one template"));
        }
    }
    Ok(())
}

/// The filter `GUARD`.
pub fn guard(state: &State, value: Value) -> Result<Value, Error> {
    let Some(object) = value.as_object() else { return Ok(value) };
    let lazy = matches!(value.kind(), ValueKind::Seq | ValueKind::Iterable)
        && !value.is_tuple()
        && object.downcast_ref::<Vec<Value>>().is_none();
    if !lazy {
        units(state, &value)?;
        return Ok(value);
    }
    let mut walk = Walk { state, units: 0, unpaid: 0 };
    let mut items = Vec::new();
    for item in object.try_iter().into_iter().flatten() {
        walk.value(&item, 1)?;
        items.push(item);
        if items.len() as u64 % ITEMS_PER_STEP == 0 {
            state.consume_fuel(1)?;
        }
    }
    walk.pay()?;
    Ok(Value::from(items))
}

/// Size of a value, in units of at most 64 bytes as written out. Pays for the walk.
pub fn units(state: &State, value: &Value) -> Result<u64, Error> {
    let mut walk = Walk { state, units: 0, unpaid: 0 };
    walk.value(value, 0)?;
    walk.pay()?;
    Ok(walk.units)
}

/// The filter `GUARD_TEXT`, on what is indexed: fuel pays for the bytes that a filter is given.
pub fn guard_text(value: Value) -> Value {
    value
}

/// The filter `GUARD_ATTRIBUTE`, on what becomes an attribute of a namespace: a namespace there could hold itself.
pub fn guard_attribute(value: Value) -> Result<Value, Error> {
    if is_namespace(&value) {
        return Err(Error::new(ErrorKind::InvalidOperation, "a namespace cannot be an attribute of one"));
    }
    Ok(value)
}

fn is_namespace(value: &Value) -> bool {
    value.as_object().is_some_and(|object| object.type_name().ends_with("::Namespace"))
}

struct Walk<'a, 'b, 'c> {
    state: &'a State<'b, 'c>,
    units: u64,
    unpaid: u64,
}

impl Walk<'_, '_, '_> {
    fn pay(&mut self) -> Result<(), Error> {
        let steps = self.unpaid / UNITS_PER_STEP;
        self.unpaid %= UNITS_PER_STEP;
        self.state.consume_fuel(steps)
    }

    fn value(&mut self, value: &Value, depth: usize) -> Result<(), Error> {
        let units = 1 + value.as_str().map_or(0, |s| s.len() as u64 / 64);
        self.units += units;
        self.unpaid += units;
        if self.unpaid >= UNITS_PER_STEP {
            self.pay()?;
        }
        if self.units > UNITS_MAX {
            return Err(too_large(format!("a value of more than {UNITS_MAX} parts")));
        }
        if depth > DEPTH_MAX {
            return Err(too_large(format!("a value nested deeper than {DEPTH_MAX}")));
        }
        if depth > 0 && is_namespace(value) {
            return Err(Error::new(ErrorKind::InvalidOperation, "a namespace cannot be part of another value"));
        }
        let Some(object) = value.as_object() else { return Ok(()) };
        match value.kind() {
            ValueKind::Seq | ValueKind::Iterable => match object.downcast_ref::<Vec<Value>>() {
                Some(items) => {
                    for item in items {
                        self.value(item, depth + 1)?;
                    }
                }
                None => {
                    for item in object.try_iter().into_iter().flatten() {
                        self.value(&item, depth + 1)?;
                    }
                }
            },
            ValueKind::Map => {
                for (key, item) in object.try_iter_pairs().into_iter().flatten() {
                    self.value(&key, depth + 1)?;
                    self.value(&item, depth + 1)?;
                }
            }
            _ => {}
        }
        Ok(())
    }
}

/// The template with guards in it.
pub fn rewrite<'a>(template: &Stmt<'a>) -> Stmt<'a> {
    statement(template)
}

fn filtered<'a>(expr: Expr<'a>, name: &'a str, span: Span) -> Expr<'a> {
    let filter = ast::Filter { name, expr: Some(expr), args: Vec::new() };
    Expr::Filter(Spanned::new(filter, span))
}

/// The expression, guarded: it is about to be walked. What is guarded when it comes into being is not guarded twice.
fn operand<'a>(expr: &Expr<'a>) -> Expr<'a> {
    let guarded = matches!(
        expr,
        Expr::Const(_) | Expr::List(_) | Expr::Tuple(_) | Expr::Map(_) | Expr::Call(_) | Expr::Filter(_)
    );
    if guarded {
        expression(expr)
    } else {
        filtered(expression(expr), GUARD, expr.span())
    }
}

fn all<'a>(exprs: &[Expr<'a>]) -> Vec<Expr<'a>> {
    exprs.iter().map(expression).collect()
}

fn arguments<'a>(args: &[CallArg<'a>]) -> Vec<CallArg<'a>> {
    args.iter()
        .map(|arg| match arg {
            CallArg::Pos(e) => CallArg::Pos(operand(e)),
            CallArg::Kwarg(name, e) => CallArg::Kwarg(name, operand(e)),
            CallArg::PosSplat(e) => CallArg::PosSplat(operand(e)),
            CallArg::KwargSplat(e) => CallArg::KwargSplat(operand(e)),
        })
        .collect()
}

fn call<'a>(node: &ast::Call<'a>) -> ast::Call<'a> {
    let callee = match &node.expr {
        // The receiver of a method: most of them walk it.
        Expr::GetAttr(method) => {
            let receiver = ast::GetAttr { expr: operand(&method.expr), name: method.name };
            Expr::GetAttr(Spanned::new(receiver, method.span()))
        }
        other => expression(other),
    };
    ast::Call { expr: callee, args: arguments(&node.args) }
}

/// A filter without the guard on its result: as the filter of a block has it, where `expr` is none.
fn bare_filter<'a>(node: &ast::Filter<'a>) -> ast::Filter<'a> {
    let input = if SHALLOW_FILTERS.contains(&node.name) { expression } else { operand };
    ast::Filter { name: node.name, expr: node.expr.as_ref().map(input), args: arguments(&node.args) }
}

fn block_filter<'a>(expr: &Expr<'a>) -> Expr<'a> {
    match expr {
        Expr::Filter(node) => {
            // The innermost filter of a chain takes the block's text.
            let mut filter = bare_filter(node);
            filter.expr = node.expr.as_ref().map(block_filter);
            Expr::Filter(Spanned::new(filter, node.span()))
        }
        other => expression(other),
    }
}

fn expression<'a>(expr: &Expr<'a>) -> Expr<'a> {
    let span = expr.span();
    match expr {
        Expr::Var(node) => Expr::Var(Spanned::new(ast::Var { id: node.id }, span)),
        Expr::Const(node) => Expr::Const(Spanned::new(ast::Const { value: node.value.clone() }, span)),
        Expr::Slice(node) => {
            let part = |e: &Option<Expr<'a>>| e.as_ref().map(expression);
            let slice = ast::Slice {
                expr: filtered(expression(&node.expr), GUARD_TEXT, span),
                start: part(&node.start),
                stop: part(&node.stop),
                step: part(&node.step),
            };
            Expr::Slice(Spanned::new(slice, span))
        }
        Expr::UnaryOp(node) => {
            let op = match node.op {
                ast::UnaryOpKind::Not => ast::UnaryOpKind::Not,
                ast::UnaryOpKind::Neg => ast::UnaryOpKind::Neg,
            };
            Expr::UnaryOp(Spanned::new(ast::UnaryOp { op, expr: expression(&node.expr) }, span))
        }
        Expr::BinOp(node) => binary(node, span),
        Expr::Compare(node) => {
            let op = |c: &ast::CompareOp<'a>| ast::CompareOp { op: c.op, expr: operand(&c.expr) };
            let compare = ast::Compare { expr: operand(&node.expr), ops: node.ops.iter().map(op).collect() };
            Expr::Compare(Spanned::new(compare, span))
        }
        Expr::IfExpr(node) => {
            let choice = ast::IfExpr {
                test_expr: expression(&node.test_expr),
                true_expr: expression(&node.true_expr),
                false_expr: node.false_expr.as_ref().map(expression),
            };
            Expr::IfExpr(Spanned::new(choice, span))
        }
        Expr::Filter(node) => filtered(Expr::Filter(Spanned::new(bare_filter(node), span)), GUARD, span),
        Expr::Test(node) => {
            let input = if SHALLOW_TESTS.contains(&node.name) { expression } else { operand };
            let test = ast::Test { name: node.name, expr: input(&node.expr), args: arguments(&node.args) };
            Expr::Test(Spanned::new(test, span))
        }
        Expr::GetAttr(node) => {
            Expr::GetAttr(Spanned::new(ast::GetAttr { expr: expression(&node.expr), name: node.name }, span))
        }
        Expr::GetItem(node) => {
            // A character is found by walking to it; a name in a text by nothing.
            let name = matches!(&node.subscript_expr, Expr::Const(c) if c.value.as_str().is_some());
            let base = expression(&node.expr);
            let expr = if name { base } else { filtered(base, GUARD_TEXT, span) };
            let item = ast::GetItem { expr, subscript_expr: operand(&node.subscript_expr) };
            Expr::GetItem(Spanned::new(item, span))
        }
        Expr::Call(node) => filtered(Expr::Call(Spanned::new(call(node), span)), GUARD, span),
        Expr::List(node) => {
            let list = Expr::List(Spanned::new(ast::List { items: all(&node.items) }, span));
            filtered(list, GUARD, span)
        }
        Expr::Tuple(node) => {
            let tuple = Expr::Tuple(Spanned::new(ast::Tuple { items: all(&node.items) }, span));
            filtered(tuple, GUARD, span)
        }
        Expr::Map(node) => {
            let keys = node.keys.iter().map(operand).collect();
            let map = Expr::Map(Spanned::new(ast::Map { keys, values: all(&node.values) }, span));
            filtered(map, GUARD, span)
        }
    }
}

fn binary<'a>(node: &ast::BinOp<'a>, span: Span) -> Expr<'a> {
    use ast::BinOpKind::{Add, Mul, ScAnd, ScOr};
    let side = if matches!(node.op, ScAnd | ScOr) { expression } else { operand };
    let op = ast::BinOp { op: node.op, left: side(&node.left), right: side(&node.right) };
    let result = Expr::BinOp(Spanned::new(op, span));
    // Lists that are added or repeated come into being only when they are walked.
    if matches!(node.op, Add | Mul) {
        filtered(result, GUARD, span)
    } else {
        result
    }
}

fn body<'a>(statements: &[Stmt<'a>]) -> Vec<Stmt<'a>> {
    statements.iter().map(statement).collect()
}

/// What is assigned to: names, not values.
fn target<'a>(expr: &Expr<'a>) -> Expr<'a> {
    let span = expr.span();
    match expr {
        Expr::List(node) => {
            let items = node.items.iter().map(target).collect();
            Expr::List(Spanned::new(ast::List { items }, span))
        }
        Expr::Tuple(node) => {
            let items = node.items.iter().map(target).collect();
            Expr::Tuple(Spanned::new(ast::Tuple { items }, span))
        }
        other => expression(other),
    }
}

fn macro_declaration<'a>(node: &Spanned<ast::Macro<'a>>) -> Spanned<ast::Macro<'a>> {
    let declaration = ast::Macro {
        name: node.name,
        args: node.args.iter().map(target).collect(),
        defaults: all(&node.defaults),
        body: body(&node.body),
    };
    Spanned::new(declaration, node.span())
}

fn assignment<'a>(node: &ast::Set<'a>) -> ast::Set<'a> {
    let mut expr = expression(&node.expr);
    if !matches!(node.target, Expr::Var(_)) {
        expr = filtered(expr, GUARD_ATTRIBUTE, node.expr.span());
    }
    ast::Set { target: target(&node.target), expr }
}

fn statement<'a>(stmt: &Stmt<'a>) -> Stmt<'a> {
    match stmt {
        Stmt::Template(node) => {
            Stmt::Template(Spanned::new(ast::Template { children: body(&node.children) }, node.span()))
        }
        Stmt::EmitExpr(node) => Stmt::EmitExpr(Spanned::new(ast::EmitExpr { expr: operand(&node.expr) }, node.span())),
        // Through the formatter, which counts the output.
        Stmt::EmitRaw(node) => {
            let value = Value::from_safe_string(node.raw.to_owned());
            let expr = Expr::Const(Spanned::new(ast::Const { value }, node.span()));
            Stmt::EmitExpr(Spanned::new(ast::EmitExpr { expr }, node.span()))
        }
        Stmt::ForLoop(node) => Stmt::ForLoop(Spanned::new(for_loop(node), node.span())),
        Stmt::IfCond(node) => {
            let condition = ast::IfCond {
                expr: expression(&node.expr),
                true_body: body(&node.true_body),
                false_body: body(&node.false_body),
            };
            Stmt::IfCond(Spanned::new(condition, node.span()))
        }
        Stmt::WithBlock(node) => {
            let assignments = node.assignments.iter().map(|(t, e)| (target(t), expression(e))).collect();
            Stmt::WithBlock(Spanned::new(ast::WithBlock { assignments, body: body(&node.body) }, node.span()))
        }
        Stmt::Set(node) => Stmt::Set(Spanned::new(assignment(node), node.span())),
        Stmt::SetBlock(node) => {
            let set = ast::SetBlock {
                target: target(&node.target),
                filter: node.filter.as_ref().map(block_filter),
                body: body(&node.body),
            };
            Stmt::SetBlock(Spanned::new(set, node.span()))
        }
        Stmt::AutoEscape(node) => {
            let escape = ast::AutoEscape { enabled: expression(&node.enabled), body: body(&node.body) };
            Stmt::AutoEscape(Spanned::new(escape, node.span()))
        }
        Stmt::FilterBlock(node) => {
            let block = ast::FilterBlock {
                filter: block_filter(&node.filter),
                filter_span: node.filter_span,
                body: body(&node.body),
            };
            Stmt::FilterBlock(Spanned::new(block, node.span()))
        }
        Stmt::Macro(node) => Stmt::Macro(macro_declaration(node)),
        Stmt::CallBlock(node) => {
            let block = ast::CallBlock {
                call: Spanned::new(call(&node.call), node.call.span()),
                call_expr_span: node.call_expr_span,
                macro_decl: macro_declaration(&node.macro_decl),
            };
            Stmt::CallBlock(Spanned::new(block, node.span()))
        }
        Stmt::Continue(node) => Stmt::Continue(Spanned::new(ast::Continue, node.span())),
        Stmt::Break(node) => Stmt::Break(Spanned::new(ast::Break, node.span())),
        Stmt::Do(node) => {
            let call = Spanned::new(call(&node.call), node.call.span());
            Stmt::Do(Spanned::new(ast::Do { call }, node.span()))
        }
    }
}

fn for_loop<'a>(node: &ast::ForLoop<'a>) -> ast::ForLoop<'a> {
    ast::ForLoop {
        target: target(&node.target),
        iter: operand(&node.iter),
        filter_expr: node.filter_expr.as_ref().map(expression),
        recursive: node.recursive,
        body: body(&node.body),
        else_body: body(&node.else_body),
    }
}
