"""Names of people in a problem, and which of them can be others."""

from __future__ import annotations

import re
from collections.abc import Sequence

from dmax.problems.gsm8k_variants.texts import NameSlot, Piece

_MEN = """
Aaron Adam Adrian Alan Albert Alfred Andre Andrew Andy Anthony Arnold Arthur Barry Ben Benjamin Bernard Billy Bob
Bobby Brad Brandon Brian Bruce Bryan Caleb Calvin Carl Carlos Charlie Colin Connor Craig Damian Dan Daniel Danny
Darren Dave David Dennis Derek Dominic Donald Doug Duncan Dylan Ed Eddie Edgar Edward Elijah Eric Ethan Eugene Felix
Fernando Fred Freddy Gabriel Gary George Gerald Greg Gregory Hank Harold Harry Hector Henry Howard Ian Isaac Ivan
Jacob Jake Jared Jason Javier Jeff Jeffrey Jeremy Jerome Jerry Jim Jimmy Joe Joel John Johnny Jonah Jonathan Joseph
Josh Joshua Juan Julian Justin Keith Ken Kenneth Kenny Kevin Kyle Larry Leo Leon Leonard Liam Logan Louis Luke Malcolm
Marcus Mario Martin Marvin Matt Matthew Max Michael Mike Nathan Neil Nicholas Nick Noah Norman Oliver Oscar Owen
Patrick Paul Pedro Peter Phil Philip Ralph Randy Raymond Ricardo Richard Rick Robert Rodney Roger Ron Ronald Ryan
Samuel Scott Sean Seth Simon Stan Stephen Steve Steven Stuart Ted Theodore Thomas Tim Timothy Toby Todd Tom Tommy Tony
Travis Trevor Tyler Victor Vincent Walter Wayne William Xavier Zach Zachary
"""
_WOMEN = """
Abigail Adriana Alice Alicia Alison Amanda Amelia Amy Andrea Angela Anita Ann Anna Anne Annie Audrey Barbara Beatrice
Becky Bella Bernice Beth Betty Bianca Brenda Bridget Brittany Camila Carla Carmen Caroline Carrie Cassandra Cassie
Catherine Cathy Cecilia Celia Cheryl Christina Christine Cindy Claire Clara Colleen Cynthia Danielle Deborah Denise
Diana Diane Donna Dorothy Edith Elaine Eleanor Elena Elizabeth Ella Ellen Elsa Emily Emma Erica Erin Esther Eva Evelyn
Fatima Felicia Fiona Gabriela Gail Gina Gloria Gretchen Gwen Hannah Harriet Hazel Heather Heidi Helen Ingrid Irene
Isabel Isabella Jackie Jane Janet Janice Jenna Jennifer Jenny Jessica Jill Joan Joanna Judy Julia Julie Karen Kate
Katherine Kathy Katie Kayla Kendra Kimberly Kristen Kylie Lana Laura Lauren Layla Leah Leila Lena Linda Lisa Lorraine
Lucia Lucy Luna Lydia Maggie Mandy Maria Marie Marilyn Marla Martha Mary Megan Melanie Melissa Mia Michelle Mildred
Miranda Molly Monica Nadia Nancy Naomi Natalie Natasha Nicole Nina Nora Olivia Pamela Patricia Paula Peggy Phoebe
Priscilla Rachel Rebecca Renee Rita Rosa Roxanne Ruth Sally Samantha Sandra Sara Sarah Sasha Selena Sharon Sheila
Shelly Sofia Sonia Sophia Sophie Stacy Stella Stephanie Susan Suzanne Sylvia Tamara Tanya Tara Teresa Tina Tracy
Ursula Valerie Vanessa Vera Veronica Wendy Yolanda Yvonne Zoe
"""
GENDER = dict.fromkeys(_MEN.split(), 0) | dict.fromkeys(_WOMEN.split(), 1)
GIVEN = tuple(tuple(name for name in names.split() if not name.endswith("s")) for names in (_MEN, _WOMEN))
_NAME = re.compile(r"(?<!Mr\. )(?<!Mrs\. )(?<!Ms\. )(?<!St\. )\b([A-Z][a-z]+)\b(?!-)('s|')?")
_SURNAMED = re.compile(r"\b([A-Z][a-z]+) [A-Z][a-z]")
_OTHER_NAME = re.compile(r"(?<=[\w,] )[A-Z][a-z]+")
_NAMES_MATTER = re.compile(r"\b(?:names?|letters?|alphabet\w*|spell\w*)\b|(?<!['’])\b[B-HJ-Z]\b(?!\.)")


def changeable_names(question: str, body: str) -> tuple[str, ...]:
    """Find the names of a question that can be others."""
    known = set(_SURNAMED.findall(f"{question} {body}"))
    found = dict.fromkeys(match[1] for match in _NAME.finditer(question))
    names = [name for name in found if name in GENDER and name not in known]
    said = {match[1] for match in _NAME.finditer(body)} - {match[1] for match in _NAME.finditer(question)}
    short = {name[:3] for name in names}
    others = set(_OTHER_NAME.findall(body)) - set(re.findall(r"\w+", question))
    unclear = any(name in GENDER or name[:3] in short for name in said) or others
    if unclear or _NAMES_MATTER.search(f"{question} {body}"):
        return ()
    return tuple(names)


def name_pieces(pieces: Sequence[Piece], names: Sequence[str]) -> tuple[Piece, ...]:
    if not names:
        return tuple(pieces)
    found: list[Piece] = []
    for piece in pieces:
        if not isinstance(piece, str):
            found.append(piece)
            continue
        at = 0
        for match in _NAME.finditer(piece):
            if match[1] in names:
                found += [piece[at : match.start()], NameSlot(names.index(match[1]), "'s" if match[2] else "")]
                at = match.end()
        found.append(piece[at:])
    return tuple(found)
